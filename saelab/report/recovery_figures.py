"""The figures of the suite "recovery", each a pure function from the data in its result file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .figure import BLUE, GREEN, ORANGE, PURPLE, Figure, new_plot

# Above the plot, with room for the two lines that narrow screens need.
_WITH_LEGEND = {
    "showlegend": True,
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
    "margin_t": 60,
}


def recovery_curve(data: dict[str, Any]) -> Figure:
    """Share of features recovered against how frequent they are."""
    lows, highs, features = data["frequency_low"], data["frequency_high"], data["features"]
    centres = [math.sqrt(low * high) for low, high in zip(lows, highs, strict=True)]
    plot = new_plot(
        "feature frequency (share of rows, log)",
        "share of features recovered",
        x_axis=_log_axis([*lows, *highs]),
        range=[-0.03, 1.03],
    )
    plot.update_layout(**_WITH_LEGEND)
    shares = {f"cosine ≥ {int(name) / 100:g}": share for name, share in data["share"].items()}
    bins = list(zip(lows, highs, features, strict=True))
    for (label, share), colour in zip(shares.items(), (GREEN, BLUE, ORANGE), strict=True):
        _add_curve(plot, label, centres, share, colour, bins)
    _add_curve(plot, "mean cosine", centres, data["mean_cosine"], PURPLE, bins, dash="dot")
    ends = "; ".join(
        f"{label}: {share[0]:.2f} of the rarest, {share[-1]:.2f} of the most frequent"
        for label, share in shares.items()
    )
    return Figure(
        name="recovery_curve",
        title="Recovery along feature frequency",
        plot=plot,
        caption="Share of the true features with a latent of at least the cosine in the legend, in "
        f"{len(features)} bin{'' if len(features) == 1 else 's'} of about equally many features, "
        "from rare to frequent, and the mean of their largest cosine (dotted). Frequency is "
        "the probability that a feature is active in a row.",
        alt=f"Curves of the share recovered against feature frequency from {lows[0]:.2g} to "
        f"{highs[-1]:.2g}: {ends}.",
        data={
            "frequency from": lows,
            "frequency to": highs,
            "features": features,
            **shares,
            "mean largest cosine": data["mean_cosine"],
        },
    )


def cosine_by_frequency(data: dict[str, Any]) -> Figure:
    """Each true feature by its frequency and its largest cosine."""
    frequency, cosine, feature = data["frequency"], data["cosine"], data["feature"]
    threshold, chance = data["threshold"], data["chance"]
    plot = new_plot(
        "feature frequency (share of rows, log)",
        "largest cosine with a latent",
        x_axis=_log_axis(frequency),
        range=[min(0.0, *cosine) - 0.03, 1.03],
    )
    for label, colour, symbol, wanted in (
        ("matched", BLUE, "circle", True),
        ("missed", ORANGE, "x", False),
    ):
        places = [i for i, value in enumerate(cosine) if (value >= threshold) == wanted]
        plot.add_scatter(
            x=[frequency[i] for i in places],
            y=[cosine[i] for i in places],
            name=label,
            mode="markers",
            marker={"size": 6, "opacity": 0.7, "color": colour, "symbol": symbol},
            customdata=[feature[i] for i in places],
            hovertemplate="feature %{customdata}<br>frequency %{x:.3g}<br>cosine %{y:.3f}"
            f"<extra>{label}</extra>",
        )
    plot.update_layout(**_WITH_LEGEND)
    plot.add_hline(y=chance, line={"dash": "dash", "width": 1.5, "color": PURPLE})
    shown, total = len(feature), data["n_features"]
    which = "all" if shown == total else f"{shown:,} evenly chosen"
    matched = sum(value >= threshold for value in cosine)
    return Figure(
        name="cosine_by_frequency",
        title="Every true feature",
        plot=plot,
        caption=f"One point per true feature ({which} of {total:,}): its frequency, and its "
        f"largest signed cosine with a decoder row. Matched: at least {threshold:g}. Dashed: "
        f"{chance:.3f}, the mean for as many random directions as there are latents.",
        alt=f"Scatter of {shown:,} true features, {matched:,} of them matched: largest cosine "
        f"from {min(cosine):.2f} to {max(cosine):.2f} against frequency.",
        data={"feature": feature, "frequency": frequency, "largest cosine": cosine},
    )


def cosine_histogram(data: dict[str, Any]) -> Figure:
    """True features by their largest cosine."""
    lows, highs, features = data["cosine_low"], data["cosine_high"], data["features"]
    threshold, chance = data["threshold"], data["chance"]
    plot = new_plot("largest cosine with a latent", "true features", rangemode="tozero")
    plot.add_bar(
        x=[(low + high) / 2 for low, high in zip(lows, highs, strict=True)],
        y=features,
        width=[high - low for low, high in zip(lows, highs, strict=True)],
        marker_color=[BLUE if low >= threshold - 1e-9 else ORANGE for low in lows],
        customdata=[[low, high] for low, high in zip(lows, highs, strict=True)],
        hovertemplate="%{y:,} features<br>cosine %{customdata[0]:.2f} to %{customdata[1]:.2f}"
        "<extra></extra>",
    )
    plot.add_vline(x=chance, line={"dash": "dash", "width": 1.5, "color": PURPLE})
    plot.update_xaxes(range=[min(lows[0], chance) - 0.03, 1.01])
    total = sum(features)
    above = sum(count for low, count in zip(lows, features, strict=True) if low >= threshold - 1e-9)
    return Figure(
        name="cosine_histogram",
        title="How near the nearest latent comes",
        plot=plot,
        caption=f"Histogram over the {total:,} true features of the largest signed cosine with a "
        f"decoder row; bins from {threshold:g} on are blue. Dashed: {chance:.3f}, the mean for as "
        "many random directions as there are latents.",
        alt=f"Histogram of the largest cosine of {total:,} true features: {above:,} in bins from "
        f"{threshold:g} on; random directions reach {chance:.2f} on average.",
        data={"cosine from": lows, "cosine to": highs, "features": features},
    )


def matched_frequencies(data: dict[str, Any]) -> Figure:
    """Matched and missed features by frequency."""
    lows, highs = data["frequency_low"], data["frequency_high"]
    matched, missed, threshold = data["matched"], data["missed"], data["threshold"]
    plot = new_plot(
        "feature frequency (share of rows, log)",
        "true features",
        x_axis=_log_axis([lows[0], highs[-1]], of_exponents=True),
        rangemode="tozero",
    )
    exponents = [(math.log10(low), math.log10(high)) for low, high in zip(lows, highs, strict=True)]
    for label, counts, colour in (("matched", matched, BLUE), ("missed", missed, ORANGE)):
        plot.add_bar(
            x=[(low + high) / 2 for low, high in exponents],
            y=counts,
            name=label,
            width=[high - low for low, high in exponents],
            marker_color=colour,
            customdata=[[low, high] for low, high in zip(lows, highs, strict=True)],
            hovertemplate="%{y:,} features<br>frequency %{customdata[0]:.2g} to "
            f"%{{customdata[1]:.2g}}<extra>{label}</extra>",
        )
    plot.update_layout(barmode="stack", **_WITH_LEGEND)
    return Figure(
        name="matched_frequencies",
        title="Which features are missed",
        plot=plot,
        caption="True features by frequency, in bins equal in log10, stacked: matched by a latent "
        f"of cosine at least {threshold:g}, and missed.",
        alt=f"Stacked histogram of {sum(matched):,} matched and {sum(missed):,} missed features "
        f"over frequencies from {lows[0]:.2g} to {highs[-1]:.2g}.",
        data={
            "frequency from": lows,
            "frequency to": highs,
            "matched": matched,
            "missed": missed,
        },
    )


def precision(data: dict[str, Any]) -> Figure:
    """Recovery and precision at every threshold."""
    thresholds = data["threshold"]
    plot = new_plot("cosine that counts as a match", "share", range=[-0.03, 1.03])
    curves = {
        "features recovered": (data["recovery"], BLUE, "solid"),
        "by a latent of their own": (data["one_to_one"], GREEN, "dash"),
        "latents that match": (data["precision"], ORANGE, "solid"),
    }
    drawn = {label: curve for label, curve in curves.items() if curve[0] is not None}
    for label, (shares, colour, dash) in drawn.items():
        plot.add_scatter(
            x=thresholds,
            y=shares,
            name=label,
            mode="lines",
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate=f"%{{y:.3f}} at %{{x:.2f}}<extra>{label}</extra>",
        )
    plot.update_layout(**_WITH_LEGEND)
    at = min(range(len(thresholds)), key=lambda place: abs(thresholds[place] - 0.9))
    stated = ", ".join(f"{label} {shares[at]:.3f}" for label, (shares, _, _) in drawn.items())
    return Figure(
        name="precision",
        title="Recovery and precision",
        plot=plot,
        caption=f"For every threshold: share of the {data['n_features']:,} true features with a "
        "latent of at least that cosine; the same with a latent of their own (one-to-one "
        "assignment of largest total cosine); and share of the "
        f"{data['n_alive']:,} alive latents with a true feature of at least that cosine.",
        alt=f"Curves of recovery and precision against the threshold; at "
        f"{thresholds[at]:g}: {stated}.",
        data={"threshold": thresholds, **{label: curve[0] for label, curve in drawn.items()}},
    )


RECOVERY_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "recovery_curve": recovery_curve,
    "cosine_by_frequency": cosine_by_frequency,
    "cosine_histogram": cosine_histogram,
    "matched_frequencies": matched_frequencies,
    "precision": precision,
}


def _add_curve(
    plot: Any,
    label: str,
    x: list[float],
    y: list[float],
    colour: str,
    bins: list[tuple[float, float, int]],
    dash: str = "solid",
) -> None:
    plot.add_scatter(
        x=x,
        y=y,
        name=label,
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 5},
        customdata=bins,
        hovertemplate="%{y:.3f}<br>%{customdata[2]:,} features of frequency %{customdata[0]:.2g} "
        f"to %{{customdata[1]:.2g}}<extra>{label}</extra>",
    )


def _log_axis(values: list[float], *, of_exponents: bool = False) -> dict[str, Any]:
    """A logarithmic axis around positive values, ticked at 1, 2 and 5 of each decade.

    Args:
        values: to be shown.
        of_exponents: what is drawn are log10 of the values, as bars of equal width need.
    """
    lowest, highest = math.log10(min(values)), math.log10(max(values))
    margin = 0.04 * (highest - lowest) + 0.05
    low, high = lowest - margin, highest + margin
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    if not any(low < math.log10(tick) < high for tick in ticks):
        # Features that are all equally frequent: name their frequency.
        ticks = [math.sqrt(min(values) * max(values))]
    return {
        "type": "linear" if of_exponents else "log",
        "range": [low, high],
        "tickvals": [math.log10(tick) for tick in ticks] if of_exponents else ticks,
        "ticktext": [f"{tick:.4g}" for tick in ticks],
    }
