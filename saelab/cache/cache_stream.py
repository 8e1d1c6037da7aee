"""Shuffled batches from a cache: one global order per epoch, endless, saved and restored exactly.

`ErrorStream` turns such batches into a component of a dictionary's error (see `ErrorRows`).

The order is computed from (seed, epoch, position) by a `Permutation`, so the stream holds no buffer
and no index, and its cost is that of the rows moved whatever the size of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.dictionary.decomposition import ORIGIN_KEY, ErrorRows
from saelab.dictionary.site import Site
from saelab.errors import ActivationError
from saelab.formats.files import hash_of
from saelab.model.identity import model_mismatch
from saelab.progress import progress_bar

from .aligned import AlignedCaches
from .batch import ActivationBatch, RowStatistics, RowSums
from .permutation import Permutation
from .reader import ActivationCache

STATISTICS_ROWS = 131_072
"""Rows that mean and variance are taken over: all of a cache, or as many spread evenly over it."""
CHUNK_ROWS = 4096


class CacheStream:
    """Endless batches of a cache's rows in a global random order.

    Every row is handed out once per epoch, in an order of that epoch's own; a batch may hold the
    end of one epoch and the start of the next, so that no row is dropped.

    Args:
        cache: where the rows are, of one hook point or of several side by side.
        batch_rows: rows in a batch.
        seed: of the order.
        with_gradients: also hand out gradients, which doubles what is read.
        n_rows: only the first so many rows in reading order; None: all.

    Raises:
        ActivationError: gradients were asked for and the cache has none.
    """

    def __init__(
        self,
        cache: ActivationCache | AlignedCaches,
        batch_rows: int,
        seed: int,
        *,
        with_gradients: bool = False,
        n_rows: int | None = None,
    ):
        if batch_rows < 1:
            raise ValueError(f"batches of {batch_rows} rows were asked for; at least 1 is needed")
        if with_gradients and not cache.has_gradients:
            raise ActivationError(
                f"gradients were asked for and {cache.folder} holds none: make the cache with "
                "--gradients"
            )
        self.cache = cache
        self.with_gradients = with_gradients
        self.batch_rows = batch_rows
        self.seed = seed
        self.epoch = 0
        self.position = 0
        self.n_rows = cache.n_rows if n_rows is None else n_rows
        self._order = Permutation(self.n_rows, seed, 0)

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.cache.d_in

    @property
    def statistics(self) -> RowStatistics:
        """Statistics of all rows of the cache."""
        return self.cache.statistics

    @property
    def target_statistics(self) -> RowStatistics | None:
        """Those of what is written, where that is not what is read."""
        return None if isinstance(self.cache, ActivationCache) else self.cache.target_statistics

    @property
    def excluded(self) -> dict[str, int]:
        """Positions of the cache's text that are no rows, by reason; its hash pins them."""
        return self.cache.excluded

    def provenance(self, site: Site | None = None) -> dict[str, Any]:
        """What a dictionary trained on this stream was made from, or on a part of its site."""
        cache = self.cache
        return cache.provenance(site) if isinstance(cache, AlignedCaches) else cache.provenance()

    def next_batch(self) -> ActivationBatch:
        """The next `batch_rows` rows: float32 activations, and gradients where asked for.

        Raises:
            ActivationError: a row holds a NaN or an infinity; the state is that before the batch.
        """
        epoch, position, order = self.epoch, self.position, self._order
        pieces, wanted = [], self.batch_rows
        while wanted:
            if position == self.n_rows:
                epoch, position = epoch + 1, 0
                order = Permutation(self.n_rows, self.seed, epoch)
            taken = min(wanted, self.n_rows - position)
            pieces.append(order(np.arange(position, position + taken)))
            position += taken
            wanted -= taken
        batch = self.cache.rows(
            torch.from_numpy(np.concatenate(pieces)), with_gradients=self.with_gradients
        )
        self.epoch, self.position, self._order = epoch, position, order
        return batch

    def state(self) -> dict[str, Tensor | int | str]:
        """All that `restore` needs to go on with the next batch."""
        return {
            "stream": "cache",
            "cache_hash": self.cache.content_hash,
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
        }

    def restore(self, state: Mapping[str, Tensor | int | str]) -> None:
        """Go on where `state` was taken.

        Raises:
            ActivationError: the state is of another kind of stream or another cache.
        """
        saved = (state.get("stream"), state.get("cache_hash"))
        if saved != ("cache", self.cache.content_hash):
            raise ActivationError(
                f"the saved data position is of stream {saved[0]!r} with cache hash {saved[1]!r}; "
                f"{self.cache.folder} has {self.cache.content_hash!r}: resume with the cache that "
                "the run started with"
            )
        self.seed, self.epoch = int(state["seed"]), int(state["epoch"])
        self.position = int(state["position"])
        self._order = Permutation(self.n_rows, self.seed, self.epoch)


class ErrorStream:
    """Endless batches in the order of a `CacheStream`, each row turned into its error.

    Args:
        stream: of the dictionary's own activations, without gradients.
        error_rows: what turns them into errors.

    Raises:
        ActivationError: the cache is of another hook point or width than the dictionary, or hands
            out gradients, which are those of the activations.
    """

    def __init__(self, stream: CacheStream, error_rows: ErrorRows):
        saved, cache = error_rows.saved, stream.cache
        if not isinstance(cache, ActivationCache):
            raise ActivationError(
                f"{saved.folder} has errors of one hook point; the stream reads {cache.site}"
            )
        if stream.with_gradients:
            raise ActivationError("the loss's gradients are of activations, not of their errors")
        if cache.d_in != saved.dictionary.d_in or cache.hook_point != saved.hook_point:
            raise ActivationError(
                f"{cache.folder} holds {cache.hook_point} of width {cache.d_in}; {saved.folder} "
                f"explains {saved.hook_point} of width {saved.dictionary.d_in}: give the cache of "
                "its own hook point"
            )
        differs = model_mismatch(cache.provenance(), saved.made_from)
        if differs is not None:
            raise ActivationError(
                f"{cache.folder} was harvested from another model than {saved.folder} was trained "
                f"on ({differs}): give a cache of its own model"
            )
        self._stream, self._cache, self._error_rows = stream, cache, error_rows
        self._statistics: RowStatistics | None = None

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self._stream.d_in

    @property
    def statistics(self) -> RowStatistics:
        """Statistics of the errors; the norm ceiling is that of the activations."""
        if self._statistics is None:
            self._statistics = self._measure()
        return self._statistics

    @property
    def target_statistics(self) -> None:
        """What is read is what is written."""

    @property
    def excluded(self) -> dict[str, int]:
        """Positions of the cache's text that are no rows, by reason."""
        return self._stream.excluded

    def provenance(self, site: Site | None = None) -> dict[str, Any]:
        """What a dictionary trained on this stream was made from."""
        return {**self._stream.provenance(site), ORIGIN_KEY: self._error_rows.provenance()}

    def next_batch(self) -> ActivationBatch:
        """The next rows: float32 errors.

        Raises:
            ActivationError: a row holds a NaN or an infinity.
        """
        return ActivationBatch(activations=self._error_rows(self._stream.next_batch().activations))

    def state(self) -> dict[str, Tensor | int | str]:
        """All that `restore` needs to go on with the next batch."""
        return {**self._stream.state(), "error_rows": self._hash()}

    def restore(self, state: Mapping[str, Tensor | int | str]) -> None:
        """Go on where `state` was taken.

        Raises:
            ActivationError: the state is of another cache, dictionary, probe or component.
        """
        if state.get("error_rows") != self._hash():
            raise ActivationError(
                f"the saved data position is of other errors than the {self._error_rows.component} "
                f"ones of {self._error_rows.saved.folder} with this probe: resume with the "
                "dictionary and probe that the run started with"
            )
        self._stream.restore({name: value for name, value in state.items() if name != "error_rows"})

    def _hash(self) -> str:
        return hash_of(self._error_rows.provenance())

    def _measure(self) -> RowStatistics:
        cache = self._cache
        n_rows = min(cache.n_rows, STATISTICS_ROWS)
        indices = torch.arange(n_rows, dtype=torch.float64) * (cache.n_rows / n_rows)
        sums: RowSums | None = None
        with progress_bar(n_rows, "statistics of the errors", "rows") as bar:
            for chunk in indices.long().split(CHUNK_ROWS):
                rows = cache.rows(chunk, with_gradients=False).activations
                part = RowSums.of(self._error_rows(rows))
                sums = part if sums is None else sums + part
                bar.update(len(chunk))
        assert sums is not None
        return sums.statistics(cache.norm_ceiling)
