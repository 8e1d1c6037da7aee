"""Exact numbers about each latent's positive activations: moments, quantiles, histogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from .schema import N_BINS, QUANTILE_LEVELS
from .shards import Pairs


@dataclass(frozen=True, eq=False)
class RangeMoments:
    """Moments of a range of latents over their positive activations; NaN where undefined."""

    mean: Float[np.ndarray, " latents"]
    """Mean."""
    std: Float[np.ndarray, " latents"]
    """Square root of the mean squared deviation."""
    skewness: Float[np.ndarray, " latents"]
    """Third standardised moment; undefined where all activations are equal."""
    kurtosis: Float[np.ndarray, " latents"]
    """Fourth standardised moment, 3 for a normal distribution; undefined likewise."""


def range_moments(pairs: Pairs) -> RangeMoments:
    """Moments in float64, from deviations rather than from differences of raw moments."""
    counts = np.diff(pairs.pointer)
    activation = pairs.activation.astype(np.float64)
    mean = _means(activation, pairs.pointer)
    deviation = activation - np.repeat(mean, counts)
    squared = deviation * deviation
    variance = _means(squared, pairs.pointer)
    third = _means(squared * deviation, pairs.pointer)
    fourth = _means(squared * squared, pairs.pointer)
    std = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        # What rounding leaves of equal activations is no spread to divide by.
        spread = np.where(std > 1e-12 * mean, std, np.nan)
        return RangeMoments(mean, std, third / spread**3, fourth / spread**4)


def _means(
    values: Float[np.ndarray, " pairs"], pointer: Integer[np.ndarray, " latents_plus_one"]
) -> Float[np.ndarray, " latents"]:
    """Mean of each latent's values; NaN for a latent without any."""
    counts = np.diff(pointer)
    means = np.full(len(counts), np.nan)
    occupied = counts > 0
    if occupied.any():
        means[occupied] = np.add.reduceat(values, pointer[:-1][occupied]) / counts[occupied]
    return means


def quantiles_of(rising: Float[np.ndarray, " active"]) -> Float[np.ndarray, " levels"]:
    """Quantiles at `QUANTILE_LEVELS` of activations in rising order, interpolated linearly."""
    place = np.array(QUANTILE_LEVELS) * (len(rising) - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, len(rising) - 1)
    share = place - below
    low, high = rising[below].astype(np.float64), rising[above].astype(np.float64)
    return low + (high - low) * share


def histogram_of(rising: Float[np.ndarray, " active"]) -> Integer[np.ndarray, " bins"]:
    """Counts in equal bins from 0 to the largest of activations in rising order.

    An edge belongs to the bin above it, the last edge to the last bin.
    """
    edges = np.linspace(0.0, float(rising[-1]), N_BINS + 1)
    below = np.searchsorted(rising, edges[1:-1], side="left")
    return np.diff(np.concatenate([[0], below, [len(rising)]]))
