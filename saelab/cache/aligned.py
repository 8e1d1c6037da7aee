"""Caches of several hook points read side by side: for transcoders and crosscoders.

Hook points harvested together have the same rows. That is checked, not believed: tokens, sequence
and position of every row are compared when the caches are joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelab.dictionary.site import Site
from saelab.errors import ActivationError
from saelab.formats.files import hash_of
from saelab.model.identity import model_mismatch

from .batch import ActivationBatch, RowStatistics
from .reader import ActivationCache, open_cache

CONTEXT_COLUMNS = ("tokens", "sequence", "position")


def open_caches(
    folder: Path, site: Site, *, verify: bool | None = None
) -> ActivationCache | AlignedCaches:
    """Open the caches of a site.

    Args:
        folder: the folder that holds one cache per hook point, as `saelab cache` fills it.
        site: what is read and written.
        verify: as `open_cache` takes it.

    Raises:
        ArtifactError: a cache is missing, unfinished, damaged, edited or foreign.
        ActivationError: a hook point has no cache here, or the caches' rows differ.
    """
    caches = {name: open_cache(folder, name, verify=verify) for name in site.hook_points}
    if len(caches) == 1:
        return caches[site.hook_point]
    return AlignedCaches(caches, site)


class AlignedCaches:
    """Caches of a site's hook points, row by row side by side.

    Args:
        caches: by hook point.
        site: what is read and written.

    Raises:
        ActivationError: a hook point has no cache, or the caches are not of the same rows.
    """

    def __init__(self, caches: Mapping[str, ActivationCache], site: Site):
        missing = [name for name in site.hook_points if name not in caches]
        if missing:
            raise ActivationError(f"no cache of {missing[0]!r} was given for the site {site}")
        self.site = site
        self._reads = [caches[name] for name in site.reads]
        self._writes = [caches[name] for name in site.writes]
        self._caches = {name: caches[name] for name in site.hook_points}
        self._first, *rest = self._caches.values()
        for cache in rest:
            require_same_rows(self._first, cache)
        self.folder = self._first.folder.parent
        self.n_rows = self._first.n_rows
        self.d_in = sum(cache.d_in for cache in self._reads)
        self.d_out = sum(cache.d_in for cache in self._writes)
        self.model_name = self._first.model_name
        self.has_gradients = all(cache.has_gradients for cache in self._writes)
        self.excluded: dict[str, int] = self._first.excluded
        self.content_hash: str = self.provenance()["cache_hash"]

    @property
    def statistics(self) -> RowStatistics:
        """Statistics of what is read."""
        return RowStatistics.joined([cache.statistics for cache in self._reads])

    @property
    def target_statistics(self) -> RowStatistics | None:
        """Statistics of what is written, where that is not what is read."""
        if self.site.is_autoencoder:
            return None
        return RowStatistics.joined([cache.statistics for cache in self._writes])

    def provenance(self, site: Site | None = None) -> dict[str, Any]:
        """What a dictionary trained on these caches was made from, or on those of a part of the
        site."""
        site = self.site if site is None else site
        caches = {name: self._caches[name] for name in site.hook_points}
        first = next(iter(caches.values())).provenance()
        if len(caches) == 1:
            return first
        hashes = {name: cache.content_hash for name, cache in caches.items()}
        return {
            **first,
            "cache_hash": hash_of([site.to_json(), hashes]),
            "cache_hashes": hashes,
            "norm_ceilings": {name: cache.norm_ceiling for name, cache in caches.items()},
        }

    def rows(
        self, indices: Int[Tensor, " batch"], *, with_gradients: bool = True
    ) -> ActivationBatch:
        """Read rows by index: what is read as activations, what is written as targets.

        Args:
            indices: rows to read, in 0 to n_rows - 1; repeats are allowed.
            with_gradients: also read the gradients at what is written, where the caches have them.

        Raises:
            IndexError: an index lies outside the caches.
            ActivationError: a row holds a NaN or an infinity.
        """
        with_gradients = with_gradients and self.has_gradients
        if self.site.is_autoencoder:
            activations, gradients = _side_by_side(self._reads, indices, with_gradients)
            return ActivationBatch(activations=activations, gradients=gradients)
        activations, _ = _side_by_side(self._reads, indices, False)
        targets, gradients = _side_by_side(self._writes, indices, with_gradients)
        return ActivationBatch(activations=activations, targets=targets, gradients=gradients)


def _side_by_side(
    caches: list[ActivationCache], indices: Tensor, with_gradients: bool
) -> tuple[Tensor, Tensor | None]:
    """Rows of several caches in one matrix, each gathered straight into its columns."""
    if len(caches) == 1:
        batch = caches[0].rows(indices, with_gradients=with_gradients)
        return batch.activations, batch.gradients
    widths = [cache.d_in for cache in caches]
    joined = torch.from_numpy(np.empty((len(indices), sum(widths)), dtype=np.float32))
    gradients = []
    for cache, out in zip(caches, joined.split(widths, dim=1), strict=True):
        batch = cache.rows(indices, with_gradients=with_gradients, out=out)
        gradients.append(batch.gradients)
    return joined, torch.cat(gradients, dim=1) if with_gradients else None


def require_same_rows(first: ActivationCache, second: ActivationCache) -> None:
    """Check that two caches hold the same rows: of one model, of the same tokens in the same order.

    Raises:
        ActivationError: they do not.
    """
    remedy = "harvest both hook points in one `saelab cache` command"
    differs = model_mismatch(first.provenance(), second.provenance())
    if differs is not None:
        raise ActivationError(
            f"{first.folder} and {second.folder} are of different models ({differs}): {remedy}"
        )
    if first.n_rows != second.n_rows:
        raise ActivationError(
            f"{first.folder} has {first.n_rows} rows and {second.folder} {second.n_rows}: they are "
            f"not side by side; {remedy}"
        )
    for start, stop in pairwise(sorted({*first.shard_starts, *second.shard_starts})):
        for name in CONTEXT_COLUMNS:
            differs = first.column(name, start, stop) != second.column(name, start, stop)
            if bool(differs.any()):
                raise ActivationError(
                    f"row {start + int(differs.int().argmax())} of {first.folder} and of "
                    f"{second.folder} differ in their {name}: they are not side by side; {remedy}"
                )
