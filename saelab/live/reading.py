"""What a dictionary sees in one text: its tokens, which of them count, and the active features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """Tokens of a text with the codes of those that count as rows.

    Pairs are sorted by position and hold no zeros.
    """

    ids: list[int]
    """Token ids, the BOS token included where the dictionary's rule puts one."""
    tokens: list[str]
    """Each token as text; bytes that are no whole character show as "�"."""
    counted: Bool[np.ndarray, " seq"]
    """Which positions count as rows under the dictionary's token filter."""
    excluded: dict[str, int]
    """Positions that do not count, by the first reason that applies."""
    n_cut: int
    """Tokens at the end of the text that were left out because it was too long."""
    position: Int[np.ndarray, " pairs"]
    """Position of each active pair."""
    latent: Int[np.ndarray, " pairs"]
    """Latent of each active pair."""
    value: Float[np.ndarray, " pairs"]
    """Code of each active pair, in the dictionary's units; float64."""

    def at(self, position: int) -> slice:
        """The pairs of one position."""
        low, high = np.searchsorted(self.position, [position, position + 1])
        return slice(int(low), int(high))

    def track(self, latent: int) -> list[float]:
        """Codes of one latent at every position, zero where it is not active."""
        values = np.zeros(len(self.ids))
        mine = self.latent == latent
        values[self.position[mine]] = self.value[mine]
        return values.tolist()
