"""A cache's shuffled batches turned into a component of a dictionary's error; see `ErrorRows`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary.error_rows import ORIGIN_KEY, ErrorRows
from saelab.errors import ActivationError
from saelab.formats.files import hash_of
from saelab.progress import progress_bar

from .batch import ActivationBatch, RowStatistics, RowSums
from .cache_stream import CacheStream
from .reader import ActivationCache

STATISTICS_ROWS = 131_072
"""Rows that mean and variance are taken over: all of a cache, or as many spread evenly over it."""
CHUNK_ROWS = 4096


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
        theirs, ours = cache.provenance().get("model_hash"), saved.made_from.get("model_hash")
        if theirs != ours:
            raise ActivationError(
                f"{cache.folder} was harvested from another model than {saved.folder} was trained "
                f"on (content hashes {str(theirs)[:12]}… and {str(ours)[:12]}…): give a cache of "
                "its own model"
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

    def provenance(self) -> dict[str, Any]:
        """What a dictionary trained on this stream was made from."""
        return {**self._stream.provenance(), ORIGIN_KEY: self._error_rows.provenance()}

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
