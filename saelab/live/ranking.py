"""Which active features to show first: by strength, by share of their maximum, or by rarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from saelab.errors import ConfigError, did_you_mean

from .reading import Reading

SORTS = {
    "strength": "the code itself, largest first",
    "relative": "the code as a share of the feature's maximum in the feature store, largest first; "
    "a feature that was never active there comes first",
    "rarity": "the feature's density in the feature store, smallest first; at equal density the "
    "larger code first",
}
"""Orders and their definitions."""


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
    """Places of the entries to show, in order; features above the density ceiling are left out.

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
