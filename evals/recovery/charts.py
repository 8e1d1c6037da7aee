"""The charts of a "recovery" result, from plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series

FREQUENCY = Axis(title="feature frequency (share of rows, log)", log=True)


def recovery_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Every chart of a recovery result."""
    return [
        recovery_curve(data["recovery_curve"]),
        cosine_by_frequency(data["cosine_by_frequency"]),
        cosine_histogram(data["cosine_histogram"]),
        matched_frequencies(data["matched_frequencies"]),
        precision(data["precision"]),
    ]


def recovery_curve(data: Mapping[str, Any]) -> Chart:
    """Share of features recovered against how frequent they are."""
    lows, highs, features = data["frequency_low"], data["frequency_high"], data["features"]
    labels = [
        f"{count:,} features of frequency {low:.2g} to {high:.2g}"
        for low, high, count in zip(lows, highs, features, strict=True)
    ]
    shares = {f"cosine ≥ {int(name) / 100:g}": share for name, share in data["share"].items()}
    curves = {**shares, "mean largest cosine": data["mean_cosine"]}
    series = [
        Series(
            name=label,
            x=[math.sqrt(low * high) for low, high in zip(lows, highs, strict=True)],
            y=values,
            mark="lines+dots",
            labels=labels,
            dashed=label not in shares,
        )
        for label, values in curves.items()
    ]
    ends = "; ".join(
        f"{label}: {share[0]:.2f} of the rarest, {share[-1]:.2f} of the most frequent"
        for label, share in shares.items()
    )
    return Chart(
        name="recovery_curve",
        title="Recovery along feature frequency",
        caption="Share of the true features with a latent of at least the cosine in the legend, in "
        f"{len(features)} bin{'' if len(features) == 1 else 's'} of about equally many features, "
        "from rare to frequent, and the mean of their largest cosine (dashed). Frequency is "
        "the probability that a feature is active in a row.",
        summary=f"Curves of the share recovered against feature frequency from {lows[0]:.2g} to "
        f"{highs[-1]:.2g}: {ends}.",
        x=FREQUENCY,
        y=Axis(title="share of features recovered", low=-0.03, high=1.03),
        series=tuple(series),
    )


def cosine_by_frequency(data: Mapping[str, Any]) -> Chart:
    """Each true feature by its frequency and its largest cosine."""
    frequency, cosine, feature = data["frequency"], data["cosine"], data["feature"]
    threshold, chance = data["threshold"], data["chance"]
    series = []
    for label, wanted in (("matched", True), ("missed", False)):
        chosen = [i for i, value in enumerate(cosine) if (value >= threshold) == wanted]
        series.append(
            Series(
                name=label,
                x=[frequency[i] for i in chosen],
                y=[cosine[i] for i in chosen],
                mark="dots",
                labels=[f"feature {feature[i]}" for i in chosen],
            )
        )
    shown, total = len(feature), data["n_features"]
    which = "all" if shown == total else f"{shown:,} evenly chosen"
    return Chart(
        name="cosine_by_frequency",
        title="Every true feature",
        caption=f"One point per true feature ({which} of {total:,}): its frequency, and its "
        f"largest signed cosine with a decoder row. Matched: at least {threshold:g}. Dashed: "
        f"{chance:.3f}, the mean for as many random directions as there are latents.",
        summary=f"Scatter of {shown:,} true features, {len(series[0].x):,} of them matched: "
        f"largest cosine from {min(cosine):.2f} to {max(cosine):.2f} against frequency.",
        x=FREQUENCY,
        y=Axis(
            title="largest cosine with a latent", low=min(0.0, *cosine, chance) - 0.03, high=1.03
        ),
        series=tuple(series),
        lines=(ReferenceLine(value=chance, label="random directions"),),
    )


def cosine_histogram(data: Mapping[str, Any]) -> Chart:
    """True features by their largest cosine."""
    lows, highs, features = data["cosine_low"], data["cosine_high"], data["features"]
    threshold, chance = data["threshold"], data["chance"]
    # The first bin that counts as matched; its lower edge is the threshold up to rounding.
    first = next((i for i, low in enumerate(lows) if low >= threshold - 1e-9), len(lows))
    edges = [*lows, highs[-1]]
    parts = (("missed", 0, first, 1), ("matched", first, len(lows), 0))
    series = [
        Series(
            name=name,
            x=edges[start : stop + 1],
            y=features[start:stop],
            mark="histogram",
            style=style,
        )
        for name, start, stop, style in parts
        if stop > start
    ]
    return Chart(
        name="cosine_histogram",
        title="How near the nearest latent comes",
        caption=f"Histogram over the {sum(features):,} true features of the largest signed cosine "
        f"with a decoder row; bins from {threshold:g} on are matched. Dashed: {chance:.3f}, the "
        "mean for as many random directions as there are latents.",
        summary=f"Histogram of the largest cosine of {sum(features):,} true features: "
        f"{sum(features[first:]):,} in bins from {threshold:g} on; random directions reach "
        f"{chance:.2f} on average.",
        x=Axis(title="largest cosine with a latent", low=min(lows[0], chance) - 0.03, high=1.01),
        y=Axis(title="true features", low=0),
        series=tuple(series),
        lines=(ReferenceLine(value=chance, label="random", axis="x"),),
        stacked=True,
    )


def matched_frequencies(data: Mapping[str, Any]) -> Chart:
    """Matched and missed features by frequency."""
    lows, highs = data["frequency_low"], data["frequency_high"]
    matched, missed = data["matched"], data["missed"]
    edges = [*lows, highs[-1]]
    return Chart(
        name="matched_frequencies",
        title="Which features are missed",
        caption="True features by frequency, in bins equal in log10, stacked: matched by a latent "
        f"of cosine at least {data['threshold']:g}, and missed.",
        summary=f"Stacked histogram of {sum(matched):,} matched and {sum(missed):,} missed "
        f"features over frequencies from {lows[0]:.2g} to {highs[-1]:.2g}.",
        x=FREQUENCY,
        y=Axis(title="true features", low=0),
        series=(
            Series(name="matched", x=edges, y=matched, mark="histogram"),
            Series(name="missed", x=edges, y=missed, mark="histogram"),
        ),
        stacked=True,
    )


def precision(data: Mapping[str, Any]) -> Chart:
    """Recovery and precision at every threshold."""
    thresholds = data["threshold"]
    curves = {
        "features recovered": data["recovery"],
        "by a latent of their own": data["one_to_one"],
        "latents that match": data["precision"],
    }
    drawn = {label: shares for label, shares in curves.items() if shares is not None}
    at = min(range(len(thresholds)), key=lambda index: abs(thresholds[index] - 0.9))
    stated = ", ".join(f"{label} {shares[at]:.3f}" for label, shares in drawn.items())
    return Chart(
        name="precision",
        title="Recovery and precision",
        caption=f"For every threshold: share of the {data['n_features']:,} true features with a "
        "latent of at least that cosine; the same with a latent of their own (one-to-one "
        "assignment of largest total cosine); and share of the "
        f"{data['n_alive']:,} alive latents with a true feature of at least that cosine.",
        summary=f"Curves of recovery and precision against the threshold; at {thresholds[at]:g}: "
        f"{stated}.",
        x=Axis(title="cosine that counts as a match"),
        y=Axis(title="share", low=-0.03, high=1.03),
        series=tuple(
            Series(name=label, x=thresholds, y=shares, dashed=label == "by a latent of their own")
            for label, shares in drawn.items()
        ),
    )
