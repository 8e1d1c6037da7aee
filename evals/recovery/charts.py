"""The charts of a "recovery" result: which true features were recovered, how well, how often."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series

from ..display import evenly_chosen, rounded
from .matching import Matching
from .numbers import FeatureTable

FREQUENCY = Axis(title="feature frequency (share of rows, log)", log=True)
MOST_POINTS = 4096
MOST_BINS = 12
LEAST_IN_BIN = 8
"""Features in a bin of the recovery curve, where there are as many."""
COSINE_BIN = 0.02
BINS_PER_DECADE = 6
CURVE_THRESHOLDS = (0.8, 0.9, 0.95)
SWEPT = [round(0.5 + 0.01 * step, 2) for step in range(51)]
"""Thresholds of the curves of recovery and precision."""


def recovery_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Every chart of a recovery result.

    `data` has `matching`, `table`, `alive` (by latent), `threshold` (cosine of a match), `chance`
    (mean largest cosine of a feature with as many random directions as latents); without `table`
    and `alive` where directions were given.
    """
    matching, threshold, chance = data["matching"], data["threshold"], data["chance"]
    if "table" not in data:
        return [cosine_histogram(matching, threshold, chance), precision(matching, None)]
    table = data["table"]
    return [
        recovery_curve(matching, table),
        cosine_by_frequency(matching, table, threshold, chance),
        cosine_histogram(matching, threshold, chance),
        matched_frequencies(table, threshold),
        precision(matching, data["alive"]),
    ]


def recovery_curve(matching: Matching, table: FeatureTable) -> Chart:
    """Share of features recovered, in bins of as many features each, from rare to frequent."""
    frequency, cosine = table.frequency, matching.cosine
    equal = float(frequency.min()) == float(frequency.max())
    n_bins = 1 if equal else max(1, min(MOST_BINS, len(frequency) // LEAST_IN_BIN))
    bins = torch.tensor_split(frequency.argsort(stable=True), n_bins)
    lows = rounded([float(frequency[part].min()) for part in bins], 6)
    highs = rounded([float(frequency[part].max()) for part in bins], 6)
    shares = {
        f"cosine ≥ {threshold:g}": [
            float((cosine[part] >= threshold).double().mean()) for part in bins
        ]
        for threshold in CURVE_THRESHOLDS
    }
    means = {"mean largest cosine": [float(cosine[part].mean()) for part in bins]}
    stated = "; ".join(
        f"{label}: {share[0]:.2f} of the rarest, {share[-1]:.2f} of the most frequent"
        for label, share in shares.items()
    )
    return Chart(
        name="recovery_curve",
        title="Recovery along feature frequency",
        caption="Share of the true features with a latent of at least the cosine in the legend, in "
        f"{n_bins} bin{'' if n_bins == 1 else 's'} of about equally many features, "
        "from rare to frequent, and the mean of their largest cosine (dashed). Frequency is "
        "the probability that a feature is active in a row.",
        summary=f"Curves of the share recovered against feature frequency from {lows[0]:.2g} to "
        f"{highs[-1]:.2g}: {stated}.",
        x=FREQUENCY,
        y=Axis(title="share of features recovered", low=-0.03, high=1.03),
        series=tuple(
            Series(
                name=label,
                x=[math.sqrt(low * high) for low, high in zip(lows, highs, strict=True)],
                y=[*values],
                mark="lines+dots",
                labels=[
                    f"{len(part):,} features of frequency {low:.2g} to {high:.2g}"
                    for low, high, part in zip(lows, highs, bins, strict=True)
                ],
                dashed=label in means,
            )
            for label, values in {**shares, **means}.items()
        ),
    )


def cosine_by_frequency(
    matching: Matching, table: FeatureTable, threshold: float, chance: float
) -> Chart:
    """Each true feature by its frequency and its largest cosine."""
    n_features = len(table.frequency)
    shown = evenly_chosen(torch.arange(n_features), MOST_POINTS)
    cosine = rounded(matching.cosine[shown], 6)
    points = list(zip(shown.tolist(), rounded(table.frequency[shown], 6), cosine, strict=True))
    parts = {
        "matched": [point for point in points if point[2] >= threshold],
        "missed": [point for point in points if point[2] < threshold],
    }
    which = "all" if len(shown) == n_features else f"{len(shown):,} evenly chosen"
    return Chart(
        name="cosine_by_frequency",
        title="Every true feature",
        caption=f"One point per true feature ({which} of {n_features:,}): its frequency, and its "
        f"largest signed cosine with a decoder row. Matched: at least {threshold:g}. Dashed: "
        f"{chance:.3f}, the mean for as many random directions as there are latents.",
        summary=f"Scatter of {len(shown):,} true features, {len(parts['matched']):,} of them "
        f"matched: largest cosine from {min(cosine):.2f} to {max(cosine):.2f} against frequency.",
        x=FREQUENCY,
        y=Axis(
            title="largest cosine with a latent", low=min(0.0, *cosine, chance) - 0.03, high=1.03
        ),
        series=tuple(
            Series(
                name=label,
                x=[x for _, x, _ in part],
                y=[y for _, _, y in part],
                mark="dots",
                labels=[f"feature {feature}" for feature, _, _ in part],
            )
            for label, part in parts.items()
        ),
        lines=(ReferenceLine(value=chance, label="random directions"),),
    )


def cosine_histogram(matching: Matching, threshold: float, chance: float) -> Chart:
    """True features by their largest cosine, in equal bins whose last ends at 1."""
    n_bins = round(1 / COSINE_BIN)
    bins = ((matching.cosine / COSINE_BIN + 1e-9).long()).clamp(0, n_bins - 1)
    counts = torch.bincount(bins, minlength=n_bins).tolist()
    start = int(bins.min())
    edges = [round(index * COSINE_BIN, 4) for index in range(n_bins + 1)]
    # The first bin that counts as matched; its lower edge is the threshold up to rounding.
    first = next((i for i in range(n_bins) if edges[i] >= threshold - 1e-9), n_bins)
    parts = (("missed", start, first, 1), ("matched", max(start, first), n_bins, 0))
    return Chart(
        name="cosine_histogram",
        title="How near the nearest latent comes",
        caption=f"Histogram over the {sum(counts):,} true features of the largest signed cosine "
        f"with a decoder row; bins from {threshold:g} on are matched. Dashed: {chance:.3f}, the "
        "mean for as many random directions as there are latents.",
        summary=f"Histogram of the largest cosine of {sum(counts):,} true features: "
        f"{sum(counts[first:]):,} in bins from {threshold:g} on; random directions reach "
        f"{chance:.2f} on average.",
        x=Axis(
            title="largest cosine with a latent", low=min(edges[start], chance) - 0.03, high=1.01
        ),
        y=Axis(title="true features", low=0),
        series=tuple(
            Series(
                name=name,
                x=[*edges[low : high + 1]],
                y=[*counts[low:high]],
                mark="histogram",
                style=style,
            )
            for name, low, high, style in parts
            if high > low
        ),
        lines=(ReferenceLine(value=chance, label="random", axis="x"),),
        stacked=True,
    )


def matched_frequencies(table: FeatureTable, threshold: float) -> Chart:
    """Matched and missed features in bins of frequency equal in log10."""
    logarithm = table.frequency.log10()
    low, high = float(logarithm.min()), float(logarithm.max())
    n_bins = max(1, math.ceil((high - low) * BINS_PER_DECADE))
    width = (high - low) / n_bins if high > low else 1 / BINS_PER_DECADE
    low = low if high > low else low - width / 2
    bins = ((logarithm - low) / width + 1e-9).long().clamp(0, n_bins - 1)
    edges = [10 ** (low + width * index) for index in range(n_bins + 1)]
    counts = {
        "matched": torch.bincount(bins[table.matched], minlength=n_bins).tolist(),
        "missed": torch.bincount(bins[~table.matched], minlength=n_bins).tolist(),
    }
    return Chart(
        name="matched_frequencies",
        title="Which features are missed",
        caption="True features by frequency, in bins equal in log10, stacked: matched by a latent "
        f"of cosine at least {threshold:g}, and missed.",
        summary=f"Stacked histogram of {sum(counts['matched']):,} matched and "
        f"{sum(counts['missed']):,} missed features over frequencies from {edges[0]:.2g} to "
        f"{edges[-1]:.2g}.",
        x=FREQUENCY,
        y=Axis(title="true features", low=0),
        series=tuple(
            Series(name=name, x=[*edges], y=values, mark="histogram")
            for name, values in counts.items()
        ),
        stacked=True,
    )


def precision(matching: Matching, alive: Bool[Tensor, " d_sae"] | None) -> Chart:
    """Shares of features, and of alive latents where known, with a partner at each threshold."""
    curves = {
        "features recovered": matching.cosine,
        "by a latent of their own": matching.assigned_cosine,
        "latents that match": None if alive is None else matching.latent_cosine[alive],
    }
    of_latents = "."
    if alive is not None:
        of_latents = (
            f"; and share of the {int(alive.sum()):,} alive latents with a true feature of at "
            "least that cosine."
        )
    shares = {
        label: [float((cosine >= threshold).double().mean()) for threshold in SWEPT]
        for label, cosine in curves.items()
        if cosine is not None and len(cosine)
    }
    at = min(range(len(SWEPT)), key=lambda index: abs(SWEPT[index] - 0.9))
    stated = ", ".join(f"{label} {values[at]:.3f}" for label, values in shares.items())
    return Chart(
        name="precision",
        title="Recovery and precision",
        caption=f"For every threshold: share of the {len(matching.cosine):,} true features with a "
        "latent of at least that cosine; the same with a latent of their own (one-to-one "
        f"assignment of largest total cosine){of_latents}",
        summary=f"Curves of recovery and precision against the threshold; at {SWEPT[at]:g}: "
        f"{stated}.",
        x=Axis(title="cosine that counts as a match"),
        y=Axis(title="share", low=-0.03, high=1.03),
        series=tuple(
            Series(name=label, x=[*SWEPT], y=[*values], dashed=label == "by a latent of their own")
            for label, values in shares.items()
        ),
    )
