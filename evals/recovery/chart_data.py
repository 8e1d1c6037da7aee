"""The data that the charts of a "recovery" result are drawn from, as plain JSON values."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .matching import Matching
from .measures import FeatureTable, threshold_name

MOST_POINTS = 4096
MOST_BINS = 12
LEAST_IN_BIN = 8
"""Features in a bin of the recovery curve, where there are as many."""
COSINE_BIN = 0.02
BINS_PER_DECADE = 6
CURVE_THRESHOLDS = (0.8, 0.9, 0.95)
SWEPT = tuple(round(0.5 + 0.01 * step, 2) for step in range(51))
"""Thresholds of the curves of recovery and precision."""


def chart_data(
    matching: Matching,
    alive: Bool[Tensor, " d_sae"],
    table: FeatureTable,
    threshold: float,
    chance: float,
) -> dict[str, Any]:
    """By chart name, what it shows.

    Args:
        matching: latents against true features.
        alive: latents active on some held-out row.
        table: what is known of each feature.
        threshold: cosine of a match.
        chance: mean largest cosine of a feature with as many random directions as latents.
    """
    return {
        "recovery_curve": _curve(matching, table),
        "cosine_by_frequency": _points(matching, table, threshold, chance),
        "cosine_histogram": _histogram(matching, threshold, chance),
        "matched_frequencies": _frequencies(table, threshold),
        "precision": _precision(matching, alive),
    }


def _curve(matching: Matching, table: FeatureTable) -> dict[str, Any]:
    """Share recovered in bins of as many features each, from rare to frequent."""
    order = table.frequency.argsort(stable=True)
    equal = float(table.frequency.min()) == float(table.frequency.max())
    n_bins = 1 if equal else max(1, min(MOST_BINS, len(order) // LEAST_IN_BIN))
    parts = torch.tensor_split(order, n_bins)
    shares = {
        threshold_name(threshold): [
            float((matching.cosine[part] >= threshold).double().mean()) for part in parts
        ]
        for threshold in CURVE_THRESHOLDS
    }
    return {
        "frequency_low": [_short(table.frequency[part].min()) for part in parts],
        "frequency_high": [_short(table.frequency[part].max()) for part in parts],
        "features": [len(part) for part in parts],
        "mean_cosine": [float(matching.cosine[part].mean()) for part in parts],
        "share": shares,
    }


def _points(
    matching: Matching, table: FeatureTable, threshold: float, chance: float
) -> dict[str, Any]:
    """The features, or `MOST_POINTS` of them at even distances, for a scatter plot."""
    n_features = len(table.frequency)
    shown = torch.arange(n_features)
    if n_features > MOST_POINTS:
        shown = torch.arange(MOST_POINTS) * n_features // MOST_POINTS
    return {
        "feature": shown.tolist(),
        "frequency": [_short(value) for value in table.frequency[shown]],
        "cosine": [_short(value) for value in matching.cosine[shown]],
        "n_features": n_features,
        "threshold": threshold,
        "chance": chance,
    }


def _histogram(matching: Matching, threshold: float, chance: float) -> dict[str, Any]:
    """Features by largest cosine, in equal bins whose last ends at 1."""
    n_bins = round(1 / COSINE_BIN)
    place = ((matching.cosine / COSINE_BIN + 1e-9).long()).clamp(0, n_bins - 1)
    counts = torch.bincount(place, minlength=n_bins).tolist()
    first = next((index for index, count in enumerate(counts) if count), 0)
    return {
        "cosine_low": [round(index * COSINE_BIN, 4) for index in range(first, n_bins)],
        "cosine_high": [round((index + 1) * COSINE_BIN, 4) for index in range(first, n_bins)],
        "features": counts[first:],
        "threshold": threshold,
        "chance": chance,
    }


def _frequencies(table: FeatureTable, threshold: float) -> dict[str, Any]:
    """Matched and missed features in bins of frequency equal in log10."""
    logarithm = table.frequency.log10()
    low, high = float(logarithm.min()), float(logarithm.max())
    n_bins = max(1, math.ceil((high - low) * BINS_PER_DECADE))
    width = (high - low) / n_bins if high > low else 1 / BINS_PER_DECADE
    low = low if high > low else low - width / 2
    place = ((logarithm - low) / width + 1e-9).long().clamp(0, n_bins - 1)
    edges = [10 ** (low + width * index) for index in range(n_bins + 1)]
    return {
        "frequency_low": edges[:-1],
        "frequency_high": edges[1:],
        "matched": torch.bincount(place[table.matched], minlength=n_bins).tolist(),
        "missed": torch.bincount(place[~table.matched], minlength=n_bins).tolist(),
        "threshold": threshold,
    }


def _precision(matching: Matching, alive: Bool[Tensor, " d_sae"]) -> dict[str, Any]:
    """Shares of features, and of alive latents, with a partner at each threshold."""
    latent_cosine, assigned = matching.latent_cosine[alive], matching.assigned_cosine
    return {
        "threshold": list(SWEPT),
        "recovery": _shares(matching.cosine),
        "one_to_one": None if assigned is None else _shares(assigned),
        "precision": _shares(latent_cosine) if len(latent_cosine) else None,
        "n_features": len(matching.cosine),
        "n_alive": len(latent_cosine),
    }


def _shares(cosine: Float[Tensor, " some"]) -> list[float]:
    return [float((cosine >= threshold).double().mean()) for threshold in SWEPT]


def _short(value: Tensor) -> float:
    return float(f"{float(value):.6g}")
