"""Caches of several hook points read side by side: for transcoders and crosscoders.

Hook points harvested together have the same rows. That is checked, not believed: tokens, sequence
and position of every row are compared when the caches are joined. Two models fed the same tokens
leave out rows of their own, by their norms: the rows that both have are read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
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

from .batch import ActivationBatch, RowStatistics, RowSums
from .format import ADOPTED_KEY
from .reader import ActivationCache, open_cache

CONTEXT_COLUMNS = ("tokens", "sequence", "position")
OF_TEXT = ("text_hash", "context_length", "n_contexts", "row_rule", "model_dtype", "model_kwargs")
"""What caches of several models must have been harvested with alike."""
SAME_TEXT = "harvest both models with the same `saelab cache` options but --model"
CHUNK_ROWS = 4096


def open_caches(
    folder: Path, site: Site, *, verify: bool | None = None
) -> ActivationCache | AlignedCaches:
    """Open the caches of a site.

    Args:
        folder: the folder that holds one cache per hook point, as `saelab cache` fills it; for
            hook points `label/hook point` the folder that holds one such folder for each label.
        site: what is read and written.
        verify: as `open_cache` takes it.

    Raises:
        ArtifactError: a cache is missing, unfinished, damaged, edited or foreign.
        ActivationError: a hook point has no cache here, or the caches' rows differ.
    """
    caches = {}
    for name in site.hook_points:
        label, _, hook_point = name.rpartition("/")
        if label and not (folder / label).is_dir():
            raise ActivationError(
                f"{folder} holds no folder {label!r} for {name!r}: make the caches of each model "
                f"in a folder of its own, such as `saelab cache {folder / label} --model …`"
            )
        caches[name] = open_cache(folder / label, hook_point, verify=verify)
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
        self._first = caches[site.hook_points[0]]
        self._models: dict[str, ActivationCache] = {}
        for name in site.hook_points:
            label = name.rpartition("/")[0]
            require_same_rows(self._models.setdefault(label, caches[name]), caches[name])
        self._kept: dict[Path, Int[Tensor, " rows"]] = {}
        self.folder = self._first.folder.parent
        self.n_rows = self._first.n_rows
        if len(self._models) > 1:
            self.folder = self.folder.parent
            kept = common_rows(list(self._models.values()))
            self.n_rows = len(kept[0])
            of_label = dict(zip(self._models, kept, strict=True))
            self._kept = {caches[n].folder: of_label[n.rpartition("/")[0]] for n in caches}
        self.d_in = sum(cache.d_in for cache in self._reads)
        self.d_out = sum(cache.d_in for cache in self._writes)
        self.model_name = self._first.model_name
        self.has_gradients = all(cache.has_gradients for cache in self._writes)
        self.excluded: dict[str, int] = dict(self._first.excluded)
        if dropped := self._first.n_rows - self.n_rows:
            self.excluded["norm_at:other models"] = dropped
        self.content_hash: str = self.provenance()["cache_hash"]

    @property
    def statistics(self) -> RowStatistics:
        """Statistics of what is read."""
        return RowStatistics.joined([self._statistics(cache) for cache in self._reads])

    @property
    def target_statistics(self) -> RowStatistics | None:
        """Statistics of what is written, where that is not what is read."""
        if self.site.is_autoencoder:
            return None
        return RowStatistics.joined([self._statistics(cache) for cache in self._writes])

    def _statistics(self, cache: ActivationCache) -> RowStatistics:
        """Those of a cache, less the rows that are not read."""
        if cache.n_rows == self.n_rows:
            return cache.statistics
        recorded, unread = cache.manifest["statistics"], torch.ones(cache.n_rows, dtype=torch.bool)
        unread[self._kept[cache.folder]] = False
        mean = torch.tensor(recorded["mean"], dtype=torch.float64)
        total, square = mean * cache.n_rows, recorded["mean_squared_norm"] * cache.n_rows
        for indices in unread.nonzero().flatten().split(CHUNK_ROWS):
            less = RowSums.of(cache.rows(indices, with_gradients=False).activations)
            total, square = total - less.total, square - less.squared_norm
        read = RowSums(n_rows=self.n_rows, total=total, squared_norm=square)
        return read.statistics(cache.norm_ceiling)

    def provenance(self, site: Site | None = None) -> dict[str, Any]:
        """What a dictionary trained on these caches was made from, or on those of a part of the
        site."""
        site = self.site if site is None else site
        caches = {name: self._caches[name] for name in site.hook_points}
        first = next(iter(caches.values())).provenance()
        if len(caches) == 1:
            return first
        hashes = {name: cache.content_hash for name, cache in caches.items()}
        models = {label: cache.provenance() for label, cache in self._models.items()}
        named = {
            label: {name: made.get(name) for name in ("model", "model_hash", "bos_id")}
            for label, made in models.items()
        }
        return {
            **first,
            **({"models": named} if len(named) > 1 else {}),
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
            activations, gradients = self._side_by_side(self._reads, indices, with_gradients)
            return ActivationBatch(activations=activations, gradients=gradients)
        activations, _ = self._side_by_side(self._reads, indices, False)
        targets, gradients = self._side_by_side(self._writes, indices, with_gradients)
        return ActivationBatch(activations=activations, targets=targets, gradients=gradients)

    def _side_by_side(
        self, caches: list[ActivationCache], indices: Tensor, with_gradients: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of several caches in one matrix, each gathered straight into its columns."""
        if len(caches) == 1:
            batch = caches[0].rows(self._rows_of(caches[0], indices), with_gradients=with_gradients)
            return batch.activations, batch.gradients
        widths = [cache.d_in for cache in caches]
        joined = torch.from_numpy(np.empty((len(indices), sum(widths)), dtype=np.float32))
        gradients = []
        for cache, out in zip(caches, joined.split(widths, dim=1), strict=True):
            rows = self._rows_of(cache, indices)
            batch = cache.rows(rows, with_gradients=with_gradients, out=out)
            gradients.append(batch.gradients)
        return joined, torch.cat(gradients, dim=1) if with_gradients else None

    def _rows_of(self, cache: ActivationCache, indices: Tensor) -> Tensor:
        """Where a cache has these rows."""
        kept = self._kept.get(cache.folder)
        return indices if kept is None else kept[indices]


def common_rows(caches: Sequence[ActivationCache]) -> list[Int[Tensor, " rows"]]:
    """Of caches of several models, one each, the rows that all have: their indices in each cache.

    Raises:
        ActivationError: the models were not fed the same tokens.
    """
    first, *rest = caches
    length = first.manifest["context_length"]
    for cache in rest:
        _require_same_text(first, cache)
    columns = [
        {
            name: torch.cat([c.column(name, *ends) for ends in pairwise(c.shard_starts)])
            for name in CONTEXT_COLUMNS
        }
        for c in caches
    ]
    keys = [(each["sequence"] * length + each["position"]).numpy() for each in columns]
    common = functools.reduce(np.intersect1d, keys)
    kept = [torch.from_numpy(np.searchsorted(each, common)) for each in keys]
    tokens = [each["tokens"][rows] for each, rows in zip(columns, kept, strict=True)]
    for cache, of_cache in zip(rest, tokens[1:], strict=True):
        differs = of_cache != tokens[0]
        if bool(differs.any()):
            index = int(differs.int().argmax())
            context, position = divmod(int(common[index]), length)
            raise ActivationError(
                f"{first.folder} has token {int(tokens[0][index])} in context {context} at "
                f"position {position} and {cache.folder} {int(of_cache[index])}: the models have "
                f"different tokenizers or read different text; {SAME_TEXT}"
            )
    return kept


def _require_same_text(first: ActivationCache, second: ActivationCache) -> None:
    """Refuse caches of two models that cannot have been fed the same tokens."""
    if any(ADOPTED_KEY in cache.provenance() for cache in (first, second)):
        raise ActivationError(
            f"{first.folder} and {second.folder} are adopted: adopt the arrays of both models in "
            "one `saelab cache adopt`, where each is a hook point without a model's name"
        )
    tokenizers = [
        dict(cache.manifest["tokenizer"] or {}, of_model=None) for cache in (first, second)
    ]
    if tokenizers[0] != tokenizers[1]:
        raise ActivationError(
            f"{first.folder} and {second.folder} are of models of different tokenizers (their "
            "special tokens differ), which cannot be fed the same tokens: a crosscoder over two "
            "models needs two of one tokenizer, such as a model and its finetune"
        )
    recorded = [{**c.provenance(), "n_contexts": c.manifest["n_contexts"]} for c in (first, second)]
    differing = [name for name in OF_TEXT if recorded[0].get(name) != recorded[1].get(name)]
    if differing:
        raise ActivationError(
            f"{first.folder} and {second.folder} differ in {', '.join(differing)}, so their rows "
            f"do not align; {SAME_TEXT}"
        )


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
