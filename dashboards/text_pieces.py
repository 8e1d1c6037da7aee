"""A reading as pieces of text: tokens whose bytes are whole characters, fragments merged."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from saelab.features.token_text import Vocabulary
from saelab.live.reading import Reading


@dataclass(frozen=True, eq=False)
class PiecedReading:
    """A reading in which a character that takes several tokens is one piece.

    A feature's value at a piece is the largest of its tokens'.
    """

    texts: list[str]
    """Text of each piece."""
    counted: list[bool]
    """Whether some token of the piece counts."""
    reading: Reading
    """By piece: `position` is the place of a piece, and a feature is listed once for each."""

    def track(self, latent: int) -> list[float]:
        """Values of one feature at every piece."""
        return self.reading.track(latent)


def pieced(reading: Reading, vocabulary: Vocabulary) -> PiecedReading:
    """Merge the tokens of a reading that only together are whole characters."""
    pieces = vocabulary.pieces(reading.ids)
    starts = np.array(pieces.starts)
    place = np.searchsorted(starts, reading.position, side="right") - 1
    # Of the entries of a feature in one piece the largest comes first and is kept.
    order = np.lexsort((-reading.value, reading.latent, place))
    pairs = np.stack([place[order], reading.latent[order]])
    first = np.ones(len(order), dtype=bool)
    first[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    kept = order[first]
    counted = [bool(reading.counted[low:high].any()) for low, high in pairwise(starts)]
    merged = Reading(
        ids=[reading.ids[low] for low in starts[:-1]],
        tokens=list(pieces.texts),
        counted=np.array(counted, dtype=bool),
        excluded=reading.excluded,
        n_cut=reading.n_cut,
        position=place[kept],
        latent=reading.latent[kept],
        value=reading.value[kept],
    )
    return PiecedReading(list(pieces.texts), counted, merged)


def sums_by_piece(
    values: Float[np.ndarray, " seq"], reading: Reading, vocabulary: Vocabulary
) -> list[float]:
    """Numbers of tokens added up within each piece."""
    starts = np.array(vocabulary.pieces(reading.ids).starts)
    return [float(values[a:b].sum()) for a, b in pairwise(starts)]
