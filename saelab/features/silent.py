"""Contexts in which a latent is silent: near misses of its decoder neighbours, and random ones.

Near misses are contexts that a decoder neighbour is strongest in and this latent does not touch:
what it might be expected to answer to, and does not. Neighbours take turns, nearest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Integer

from .examples import TextKeys


@dataclass(frozen=True, eq=False)
class TopPlaces:
    """The top examples of every latent, padded."""

    row: Integer[np.ndarray, "d_sae n_top"]
    """Row of each; −1 where there are fewer."""
    activation: Float[np.ndarray, "d_sae n_top"]
    """Activation there."""


class SilentContexts:
    """Chooses the silent contexts of each latent.

    Args:
        tops: top examples of every latent.
        keys: of the text.
        n_near: near misses, at most.
        n_random: random contexts, at most.
    """

    def __init__(self, tops: TopPlaces, keys: TextKeys, n_near: int, n_random: int):
        self._tops = tops
        self._keys = keys
        self._n_near = n_near
        self._n_random = n_random
        self._active = np.zeros(len(keys.context_draw), bool)
        self._drawn_order = np.argsort(keys.context_draw, kind="stable")

    def arrays(
        self, row: Integer[np.ndarray, " active"], neighbours: Integer[np.ndarray, " neighbours"]
    ) -> dict[str, np.ndarray]:
        """The arrays of table `silent` of a latent.

        Args:
            row: where it is active.
            neighbours: its decoder neighbours, nearest first.
        """
        contexts = (row // np.uint32(self._keys.context_length)).astype(np.int64)
        # One scratch array for all latents: clearing what was set costs less than a fresh one.
        self._active[contexts] = True
        near = self._near(neighbours, self._active)
        random = self._random(self._active)
        self._active[contexts] = False
        return {**near, **random}

    def _near(
        self, neighbours: Integer[np.ndarray, " neighbours"], active: Bool[np.ndarray, " contexts"]
    ) -> dict[str, np.ndarray]:
        length = self._keys.context_length
        # Rank by rank over the neighbours: each neighbour's best, then each one's second best.
        by_rank = "neighbour rank -> (rank neighbour)"
        rows = rearrange(self._tops.row[neighbours], by_rank)
        values = rearrange(self._tops.activation[neighbours], by_rank)
        others = repeat(neighbours, "neighbour -> (rank neighbour)", rank=self._tops.row.shape[1])
        contexts = rows // length
        usable = (rows >= 0) & ~active[contexts]
        rows, values, others = rows[usable], values[usable], others[usable]
        _, first = np.unique(rows // length, return_index=True)
        chosen = np.sort(first)[: self._n_near]
        return {
            "near_sequence": rows[chosen] // length,
            "near_anchor": rows[chosen] % length,
            "near_feature": others[chosen],
            "near_activation": values[chosen],
        }

    def _random(self, active: Bool[np.ndarray, " contexts"]) -> dict[str, np.ndarray]:
        """The silent contexts that are drawn first, each with a position drawn in it."""
        length = self._keys.context_length
        found = np.zeros(0, np.int64)
        step = max(64, 4 * self._n_random)
        for start in range(0, len(self._drawn_order), step):
            candidates = self._drawn_order[start : start + step]
            found = np.concatenate([found, candidates[~active[candidates]]])[: self._n_random]
            if len(found) == self._n_random:
                break
        anchors = self._keys.context_draw[found] % np.uint64(length)
        return {"random_sequence": found, "random_anchor": anchors}
