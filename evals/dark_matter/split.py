"""Which rows a fit sees and which it is scored on: by context, and token by token beside it.

Neighbouring tokens of a context resemble one another, so a split token by token, as the paper
makes it, lets the test rows' neighbours into the training rows; a split by context does not. Both
are drawn by a keyed hash of the row's place in the text: the same for every dictionary, batch size
and order, with no list of rows kept.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

N_CELLS = 4
CONTEXT_TRAIN, CONTEXT_TEST = (0, 1), (2, 3)
TOKEN_TRAIN, TOKEN_TEST = (0, 2), (1, 3)
"""Cells: 2 × (context is of the test part) + (token is of the test part)."""


def cells_of(
    sequence: Int[Tensor, " rows"],
    position: Int[Tensor, " rows"],
    *,
    seed: int,
    train_fraction: float,
) -> Int[Tensor, " rows"]:
    """The cell of each row, 0 to 3; see `CONTEXT_TRAIN` and its neighbours.

    Args:
        sequence: index of each row's context.
        position: of each row in its context.
        seed: draws both splits.
        train_fraction: expected share of contexts, and of tokens, to fit on.
    """
    context = sequence.cpu().numpy().astype(np.uint64)
    token = (context << np.uint64(32)) + position.cpu().numpy().astype(np.uint64)
    test_context = _uniform(context, 2 * seed) >= train_fraction
    test_token = _uniform(token, 2 * seed + 1) >= train_fraction
    return torch.from_numpy(2 * test_context.astype(np.int64) + test_token.astype(np.int64))


def _uniform(keys: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in [0, 1) by SplitMix64 of each key under a seed."""
    with np.errstate(over="ignore"):
        z = keys * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % (1 << 63)) * np.uint64(
            0xD1342543DE82EF95
        )
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)
