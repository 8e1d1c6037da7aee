"""What the suite evaluates: rows of activations with their places, which can be gone over again.

They come from an activation cache (`cache_rows`) or from the model on held-out text (`text_rows`).
The paper drops the first 200 positions of every context, which are easier to reconstruct; see
`first_position_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError

PAPER_FIRST_POSITION = 200
SHORTEST_CONTEXT = 2 * PAPER_FIRST_POSITION
BATCH_ROWS = 4096


@dataclass(frozen=True, eq=False, kw_only=True)
class RowBatch:
    """Rows with where they come from."""

    activations: Float[Tensor, "rows d_in"]
    """Float32."""
    tokens: Int[Tensor, " rows"]
    """Token ids."""
    sequence: Int[Tensor, " rows"]
    """Index of the context in the text."""
    position: Int[Tensor, " rows"]
    """Position in the context, from 0."""
    loss: Float[Tensor, " rows"]
    """The model's loss at predicting the next token, nats, float64; NaN where not measured."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A source of rows that can be gone over any number of times."""

    read: Callable[[], Iterator[RowBatch]]
    """Begins anew each time it is called."""
    d_in: int
    """Width."""
    first_position: int
    """Rows at earlier positions are left out."""
    described: dict[str, Any]
    """What the rows are, for the result."""

    def batches(self) -> Iterator[RowBatch]:
        """All rows in reading order, `BATCH_ROWS` or fewer at a time."""
        return self.read()


def first_position_of(asked: int | None, context_length: int) -> int:
    """The first position that counts: as asked, or the paper's 200 where contexts allow it.

    Contexts allow it if half of them or more is left; in shorter ones every position counts that
    the token filter keeps.

    Raises:
        ConfigError: no position would be left.
    """
    if asked is not None:
        if asked >= context_length:
            raise ConfigError(
                f"first_position: {asked} leaves nothing of contexts of {context_length} tokens; "
                "give a smaller one"
            )
        return asked
    return PAPER_FIRST_POSITION if context_length >= SHORTEST_CONTEXT else 0
