"""Opening an activation cache and reading rows of it.

Shards are mapped, not loaded: opening costs no memory, and `rows` moves only the rows asked for,
whatever the size of the cache. Nothing is trusted: manifest, sizes, hashes, shapes and dtypes are
checked on opening and values on reading.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ActivationError, ArtifactError, ConfigError, did_you_mean
from saelab.formats.files import odd_content_is_damage

from .batch import ActivationBatch, RowStatistics, first_not_finite
from .config import TokenFilter
from .format import (
    ADOPTED_KEY,
    MANIFEST_NAME,
    how_to_finish,
    map_shard,
    origin_of,
    read_cache_manifest,
    shard_entries,
    verify_shards,
)


@dataclass(frozen=True)
class _Plan:
    """The rows asked for, sorted and cut by shard, and where each lies among the sorted ones."""

    indices: npt.NDArray[np.int64]
    parts: list[tuple[int, int, int, npt.NDArray[np.int64]]]
    """Shard, start and stop among the sorted rows, and the rows within the shard."""
    inverse: npt.NDArray[np.int64]


def open_cache(
    folder: Path, hook_point: str | None = None, *, verify: bool | None = None
) -> ActivationCache:
    """Open a finished cache.

    Args:
        folder: the folder of one cache, or the folder that holds one per hook point.
        hook_point: which one; may be left out where there is only one.
        verify: True: check every shard's sha256, which reads the whole cache; False: sizes only;
            None: sizes, times, and the sha256 of a sample and of all that was touched since.

    Raises:
        ArtifactError: missing, unfinished, damaged, edited, foreign, or from a newer saelab.
        ConfigError: several hook points are there and none was named.
        ActivationError: the cache is of another hook point.

    Example:
        >>> cache = saelab.open_cache(planted_cache)
        >>> cache.d_in, cache.n_rows > 0
        (24, True)
    """
    folder = _find_folder(Path(folder), hook_point)
    with odd_content_is_damage(folder):
        return _open_cache(folder, hook_point, verify)


def _open_cache(folder: Path, hook_point: str | None, verify: bool | None) -> ActivationCache:
    path = folder / MANIFEST_NAME
    manifest = read_cache_manifest(path)
    if hook_point is not None and manifest["hook_point"] != hook_point:
        raise ActivationError(
            f"{folder} is a cache of {manifest['hook_point']!r}; {hook_point!r} was asked for: "
            "name its own folder, or harvest that hook point"
        )
    if manifest["status"] != "complete":
        raise ArtifactError(
            f"{folder} is unfinished ({len(manifest['shards'])} shards so far): "
            f"{how_to_finish(manifest)}"
        )
    entries = shard_entries(manifest, path)
    if verify is not False:
        verify_shards(folder, entries, sample=verify is None)
    shards = [map_shard(folder / entry.file, manifest, entry) for entry in entries]
    return ActivationCache(folder, manifest, shards)


def _find_folder(folder: Path, hook_point: str | None) -> Path:
    """The folder with the manifest: `folder` itself or one directly below it."""
    if (folder / MANIFEST_NAME).is_file():
        return folder
    folders = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    if not folders:
        raise ArtifactError(
            f"{folder} holds no activation cache (no {MANIFEST_NAME} in it or directly below it): "
            "make one with `saelab cache`"
        )
    names = [path.name for path in folders]
    if hook_point is None and len(folders) == 1:
        return folders[0]
    if hook_point is None:
        raise ConfigError(
            f"hook_point: {folder} holds {len(folders)} caches; name one of {', '.join(names)}"
        )
    if hook_point not in names:
        raise ActivationError(
            f"{folder} holds no cache of {hook_point!r} ({did_you_mean(hook_point, names)}): "
            "harvest that hook point, or name one that is there"
        )
    return folder / hook_point


class ActivationCache:
    """Rows of one hook point on disk, in reading order. Made by `open_cache`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], shards: list[dict[str, Tensor]]):
        self.folder = folder
        self.manifest = manifest
        self._shards = shards
        self._scratch = _Scratch()
        self._starts = np.cumsum([0, *(len(shard["tokens"]) for shard in shards)])
        self.n_rows = int(self._starts[-1])
        self.d_in: int = manifest["d_in"]
        self.hook_point: str = manifest["hook_point"]
        self.model_name: str = manifest["made_from"]["model"]
        self.content_hash: str = manifest["content_hash"]
        self.has_gradients: bool = manifest["has_gradients"]
        self.norm_ceiling: float | None = manifest["norm_ceiling"]
        self.excluded: dict[str, int] = manifest["excluded"]
        self.token_filter = TokenFilter.from_json(manifest["row_rule"])
        if self.n_rows != manifest["n_rows"]:
            raise ArtifactError(
                f"{folder} has shards of {self.n_rows} rows; its manifest says {manifest['n_rows']}"
            )

    @property
    def statistics(self) -> RowStatistics:
        """Statistics of all rows of the cache."""
        recorded = self.manifest["statistics"]
        return RowStatistics(
            n_rows=self.n_rows,
            mean=torch.tensor(recorded["mean"], dtype=torch.float32),
            mean_squared_norm=recorded["mean_squared_norm"],
            centred_mean_squared_norm=recorded["centred_mean_squared_norm"],
            norm_ceiling=self.norm_ceiling,
        )

    def provenance(self) -> dict[str, Any]:
        """What a dictionary trained on this cache was made from."""
        made_from = {**origin_of(self.manifest), "cache_hash": self.content_hash}
        if ADOPTED_KEY in made_from:
            # There is no text to read again: this is where the held-out rows are found.
            made_from["activations"] = str(self.folder.resolve().parent)
        return made_from

    def rows(
        self,
        indices: Int[Tensor, " batch"],
        *,
        with_context: bool = False,
        with_gradients: bool = True,
        out: Float[Tensor, "batch d_in"] | None = None,
    ) -> ActivationBatch:
        """Read rows by index, in the order of `indices`; the cost is that of the rows moved.

        Args:
            indices: rows to read, in 0 to n_rows - 1; repeats are allowed.
            with_context: also read tokens, sequence and position.
            with_gradients: also read gradients, where the cache has them; doubles what is moved.
            out: float32 rows to fill with the activations, such as a slice of a wider matrix.

        Raises:
            IndexError: an index lies outside the cache.
            ActivationError: a row holds a NaN or an infinity.
        """
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self.n_rows):
            raise IndexError(f"row indices must lie in 0 to {self.n_rows - 1}")
        plan = self._plan(indices.cpu().numpy().astype(np.int64))
        read = {}
        for name in ("tokens", "sequence", "position") if with_context else ():
            column = torch.empty(len(indices), dtype=self._shards[0][name].dtype)
            read[name] = self._gather(plan, name, column)
        read["activations"] = self._gather_finite(plan, "activations", out)
        if with_gradients and self.has_gradients:
            read["gradients"] = self._gather_finite(plan, "gradients")
        return ActivationBatch(**read)

    @property
    def shard_starts(self) -> list[int]:
        """Index of the first row of each shard, and the number of rows."""
        return self._starts.tolist()

    def column(self, name: str, start: int, stop: int) -> Int[Tensor, " rows"]:
        """Tokens, sequence or position of some rows of one shard, mapped and not read."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        first = int(self._starts[shard])
        return self._shards[shard][name][start - first : stop - first]

    def iterate(self, batch_rows: int) -> Iterator[ActivationBatch]:
        """All rows in reading order, with tokens, sequence and position.

        Args:
            batch_rows: rows in a batch; the last one may be smaller.
        """
        for start in range(0, self.n_rows, batch_rows):
            indices = torch.arange(start, min(start + batch_rows, self.n_rows))
            yield self.rows(indices, with_context=True)

    def _plan(self, indices: npt.NDArray[np.int64]) -> _Plan:
        order = indices.argsort()
        ascending = indices[order]
        bounds = np.searchsorted(ascending, self._starts).tolist()
        parts = [
            (shard, start, stop, ascending[start:stop] - self._starts[shard])
            for shard, (start, stop) in enumerate(pairwise(bounds))
            if stop > start
        ]
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        return _Plan(indices, parts, inverse)

    def _gather(self, plan: _Plan, name: str, out: Tensor) -> Tensor:
        """Fill `out`, which may be of another dtype than the stored column.

        Rows are moved by numpy, in this thread: torch would start its threads once per shard, which
        costs more than it gains, and by far where other processes want the same cores.
        """
        dtype = self._shards[0][name].dtype
        ascending = _bits(self._scratch.take("ascending", out.shape, dtype))
        for shard, start, stop, local in plan.parts:
            column = _bits(self._shards[shard][name])
            # "clip" writes straight to `out`; the indices were checked.
            np.take(column, local, axis=0, out=ascending[start:stop], mode="clip")
        asked = out if out.dtype == dtype else self._scratch.take("asked", out.shape, dtype)
        np.take(ascending, plan.inverse, axis=0, out=_bits(asked), mode="clip")
        return out if asked is out else out.copy_(asked)

    def _gather_finite(
        self, plan: _Plan, name: str, out: Tensor | None = None
    ) -> Float[Tensor, "batch d_in"]:
        if out is None:
            # numpy asks for huge pages and torch does not: page faults on fresh memory would take
            # longer than moving the rows.
            out = torch.from_numpy(np.empty((len(plan.indices), self.d_in), dtype=np.float32))
        rows = self._gather(plan, name, out)
        bad = first_not_finite(rows)
        if bad is not None:
            index = int(plan.indices[bad])
            shard = int(np.searchsorted(self._starts, index, side="right")) - 1
            entry = self.manifest["shards"][shard]["file"]
            raise ActivationError(
                f"{self.folder / entry} holds NaN or infinite {name} in its row "
                f"{index - int(self._starts[shard])}: make the cache again with --overwrite"
            )
        return rows


def _bits(column: Tensor) -> npt.NDArray[Any]:
    """A numpy view; bfloat16, which numpy lacks, as the integers that it is stored as."""
    return (column.view(torch.int16) if column.dtype == torch.bfloat16 else column).numpy()


class _Scratch(threading.local):
    """Buffers used again for every batch, each thread its own: fresh ones cost page faults."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def take(self, label: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor of this shape with arbitrary content, valid until the label is taken again."""
        key = (label, shape[1:], dtype)
        if key not in self._buffers or len(self._buffers[key]) < shape[0]:
            self._buffers[key] = torch.empty(shape, dtype=dtype)
        return self._buffers[key][: shape[0]]
