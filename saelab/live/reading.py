"""What a dictionary sees in one text, and which of the active features to show first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from saelab.errors import ConfigError, did_you_mean

SORTS = {
    "strength": "the code itself, largest first",
    "relative": "the code as a share of the feature's maximum in the feature store, largest first; "
    "a feature that was never active there comes first",
    "rarity": "the feature's density in the feature store, smallest first; at equal density the "
    "larger code first",
}
"""Orders and their definitions."""


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
        pairs = self.latent == latent
        values[self.position[pairs]] = self.value[pairs]
        return values.tolist()


@dataclass(frozen=True, eq=False)
class FeatureNumbers:
    """What a feature store says of every feature."""

    density: Float[np.ndarray, " d_sae"]
    """Share of counted tokens on which each is active."""
    maximum: Float[np.ndarray, " d_sae"]
    """Largest code of each; 0 where it was never active."""


def relative(
    value: Float[np.ndarray, " n"], maximum: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Codes over the maxima of their features; infinite where a feature was never active."""
    return np.divide(value, maximum, out=np.full(len(value), np.inf), where=maximum > 0)


def ranked(
    latent: Int[np.ndarray, " n"],
    value: Float[np.ndarray, " n"],
    numbers: FeatureNumbers,
    sort: str,
    density_ceiling: float = 1.0,
) -> Int[np.ndarray, " kept"]:
    """Indices of the entries to show, in order; features above the density ceiling are left out.

    Args:
        latent: the feature of each entry.
        value: its code.
        numbers: of all features.
        sort: one of `SORTS`.
        density_ceiling: largest density shown, a share of tokens.

    Raises:
        ConfigError: an unknown sort.
    """
    if sort not in SORTS:
        raise ConfigError(f"sort {sort!r} is unknown: {did_you_mean(sort, SORTS)}")
    density = numbers.density[latent]
    first = {
        "strength": -value,
        "relative": -relative(value, numbers.maximum[latent]),
        "rarity": density,
    }[sort]
    order = np.lexsort((latent, -value, first))
    return order[density[order] <= density_ceiling]


@dataclass(frozen=True, eq=False)
class FeatureUse:
    """What each active feature does in one text, one entry per feature, by feature number."""

    latent: Int[np.ndarray, " features"]
    """The features active somewhere in the text."""
    peak: Float[np.ndarray, " features"]
    """Largest code in the text."""
    peak_position: Int[np.ndarray, " features"]
    """Where: the first position with that code."""
    n_positions: Int[np.ndarray, " features"]
    """Positions at which it is active."""


def feature_use(reading: Reading) -> FeatureUse:
    """Summarise a reading by feature."""
    order = np.lexsort((reading.position, -reading.value, reading.latent))
    latent, start, count = np.unique(reading.latent[order], return_index=True, return_counts=True)
    best = order[start]
    return FeatureUse(latent, reading.value[best], reading.position[best], count)
