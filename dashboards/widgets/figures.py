"""The charts of the feature pages, each a pure function from plain numbers to a `Figure`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from saelab.features.records import FeatureRecord, Histogram, LogitLens
from saelab.report.figure import BLUE, GREEN, ORANGE, PURPLE, Figure, log_axis, new_plot

from .token_html import visible_text

CHART_HEIGHT = 280
MARKED_LEVELS = (0.5, 0.9, 0.99)
SERIES_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
SILENT_COLOUR = "#8a8f96"


def short(value: float | None) -> str:
    """A number with three significant digits, in words where there is none."""
    if value is None or not math.isfinite(value):
        return "undefined"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.3g}"


def activation_histogram(record: FeatureRecord, *, log_counts: bool = True) -> Figure | None:
    """Active tokens of a feature by activation, with quantile marks; None if it never fires."""
    histogram = record.histogram
    if histogram is None:
        return None
    plot = new_plot(
        "activation",
        "tokens (log)" if log_counts else "tokens",
        **_count_axis(histogram.counts, log_counts),
    )
    _add_bars(plot, histogram, BLUE, "tokens with activation")
    quantiles = [(level, value) for level, value in record.quantiles if level in MARKED_LEVELS]
    for place, (level, value) in enumerate(quantiles):
        plot.add_vline(x=value, line={"color": ORANGE, "width": 1.5, "dash": "dot"})
        # One below the other, because high quantiles lie close together.
        plot.add_annotation(
            x=value,
            y=1 - 0.08 * place,
            yref="paper",
            text=f"{100 * level:g} %",
            showarrow=False,
            xanchor="right",
            xshift=-3,
            font={"size": 11},
        )
    plot.update_layout(height=CHART_HEIGHT)
    marks = ", ".join(f"{100 * level:g} % at {short(value)}" for level, value in quantiles)
    return Figure(
        name="activation_histogram",
        title="Activations",
        plot=plot,
        caption=f"The {record.n_active:,} tokens on which the feature is active, by activation, "
        f"in {len(histogram.counts)} equal bins from 0 to the maximum; an edge belongs to the bin "
        "above it. Dotted: quantiles of these activations.",
        alt=f"Histogram of {record.n_active:,} activations of feature {record.id}, up to "
        f"{short(record.max_act)}: {_fullest(histogram, 'tokens')}"
        + (f" Quantiles: {marks}." if marks else ""),
        data=_histogram_data(histogram, "activation", "tokens"),
    )


def logit_histogram(lens: LogitLens) -> Figure:
    """What a feature adds to each token's logit, over the vocabulary."""
    histogram, moments = lens.histogram, lens.moments
    plot = new_plot("logit per unit of activation", "tokens of the vocabulary (log)")
    plot.update_yaxes(**_count_axis(histogram.counts, True))
    _add_bars(plot, histogram, PURPLE, "tokens with logit")
    plot.update_layout(height=CHART_HEIGHT)
    total = int(histogram.counts.sum())
    tail = ""
    if lens.top:
        best = lens.top[0]
        tail = f" The highest is {visible_text(best.text)!r} with {best.value:+.3g}."
    return Figure(
        name="logit_histogram",
        title="Logits over the vocabulary",
        plot=plot,
        caption="What one unit of this feature adds to each token's logit: decoder row times the "
        "final norm's gain, through the unembedding. Skewness "
        f"{short(moments.skewness)}, kurtosis {short(moments.kurtosis)} (3 for a normal "
        "distribution; far above, the feature speaks for a few tokens).",
        alt=f"Histogram of logits over {total:,} tokens, from "
        f"{short(float(histogram.edges[0]))} to {short(float(histogram.edges[-1]))}: "
        f"{_fullest(histogram, 'tokens')}{tail}",
        data=_histogram_data(histogram, "logit", "tokens"),
    )


def density_histogram(densities: dict[str, Sequence[float]], n_tokens: dict[str, int]) -> Figure:
    """Features by log density, one line of steps per dictionary.

    Args:
        densities: by dictionary, the density of every feature.
        n_tokens: by dictionary, the tokens counted.
    """
    plot = new_plot("density (fraction of tokens, log)", "features", rangemode="tozero")
    positive = [d for values in densities.values() for d in values if d > 0]
    low = math.floor(math.log10(min(positive, default=1e-6)))
    edges = np.linspace(low, 0.0, max(1, -low) * 5 + 1)
    data: dict[str, list[Any]] = {
        "density from": [0.0, *(10.0**edge for edge in edges[:-1])],
        "density to": [0.0, *(10.0**edge for edge in edges[1:])],
    }
    sentences = []
    for place, (name, values) in enumerate(densities.items()):
        array = np.asarray([d for d in values if d > 0], dtype=np.float64)
        counts, _ = np.histogram(np.clip(np.log10(array), low, 0), bins=edges)
        silent = len(values) - array.size
        data[name] = [silent, *map(int, counts)]
        plot.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            name=name,
            marker={"color": SERIES_COLOURS[place % len(SERIES_COLOURS)]},
            opacity=0.75 if len(densities) > 1 else 1,
            customdata=np.stack([10.0 ** edges[:-1], 10.0 ** edges[1:]], axis=1),
            hovertemplate="%{y:,} features with density<br>%{customdata[0]:.2g} to "
            "%{customdata[1]:.2g}<extra></extra>",
        )
        median = float(np.median(array)) if array.size else None
        sentences.append(
            f"{name}: {len(values):,} features, {silent:,} never active on "
            f"{n_tokens.get(name, 0):,} tokens, median density of the others {short(median)}"
        )
    decades = list(range(low, 1))
    plot.update_xaxes(tickvals=decades, ticktext=[_power(decade) for decade in decades])
    plot.update_layout(
        height=CHART_HEIGHT + 20,
        barmode="overlay",
        showlegend=len(densities) > 1,
        legend={"orientation": "h", "y": 1.12},
    )
    return Figure(
        name="density_histogram",
        title="How often features are active",
        plot=plot,
        caption="Features by density: tokens on which the feature is active over tokens counted, "
        "in bins equal in log10. Features that were never active are in the data, not in the bars.",
        alt="Histogram of feature density. " + "; ".join(sentences) + ".",
        data=data,
    )


def feature_map(
    ids: Sequence[int],
    x: Sequence[float],
    y: Sequence[float],
    densities: Sequence[float],
    hover: Sequence[str],
    *,
    labelled: Sequence[bool] | None = None,
    method: str = "decoder directions in two dimensions",
) -> Figure:
    """Decoder directions in 2-D; points are chosen by clicking.

    Args:
        ids: features.
        x: first coordinate.
        y: second coordinate.
        densities: colours the points by log10, unless `labelled` is given.
        hover: text shown at a point.
        labelled: colours the points by whether a feature has a label.
        method: how the coordinates were found, for the caption.
    """
    plot = new_plot(
        "map axis 1 (no unit)", "map axis 2 (no unit)", x_axis={"showgrid": False}, showgrid=False
    )
    log_density = [math.log10(d) if d > 0 else math.nan for d in densities]
    groups = _map_groups(log_density, labelled)
    for name, places, marker in groups:
        plot.add_scattergl(
            x=[x[place] for place in places],
            y=[y[place] for place in places],
            mode="markers",
            name=name,
            marker={"size": 6, "opacity": 0.75, **marker},
            customdata=[ids[place] for place in places],
            text=[hover[place] for place in places],
            hovertemplate="%{text}<extra></extra>",
        )
    plot.update_layout(
        height=620, showlegend=len(groups) > 1, legend={"orientation": "h", "y": 1.06}
    )
    finite = [value for value in log_density if math.isfinite(value)]
    span = f"{10 ** min(finite):.2g} to {10 ** max(finite):.2g}" if finite else "none"
    colour = "whether they have a label" if labelled is not None else "log10 of density"
    return Figure(
        name="feature_map",
        title="Map of decoder directions",
        plot=plot,
        caption=f"Each point is a feature, placed by its {method}; near points tend to have "
        f"similar decoder rows, distances have no unit. Coloured by {colour}. Click a point to "
        "open it.",
        alt=f"Scatter plot of {len(ids):,} features by decoder direction, coloured by {colour}; "
        f"densities of active features: {span}.",
        data={"feature": list(ids), "x": list(x), "y": list(y), "density": list(densities)},
        wide=True,
    )


def _map_groups(
    log_density: list[float], labelled: Sequence[bool] | None
) -> list[tuple[str, list[int], dict[str, Any]]]:
    every = range(len(log_density))
    if labelled is not None:
        groups = [
            ("no label", [p for p in every if not labelled[p]], {"color": SILENT_COLOUR}),
            ("label", [p for p in every if labelled[p]], {"color": ORANGE, "size": 9}),
        ]
    else:
        active = [p for p in every if math.isfinite(log_density[p])]
        groups = [
            (
                "active",
                active,
                {
                    "color": [log_density[p] for p in active],
                    "colorscale": "Cividis",
                    "colorbar": {"title": {"text": "log10<br>density"}, "thickness": 12},
                },
            ),
            (
                "never active",
                [p for p in every if not math.isfinite(log_density[p])],
                {"color": SILENT_COLOUR, "symbol": "x"},
            ),
        ]
    return [group for group in groups if group[1]]


def match_histogram(cosines: dict[str, Sequence[float]]) -> Figure:
    """How well features of one dictionary are found in another, one series per direction."""
    plot = new_plot("cosine with the nearest decoder row of the other", "features")
    edges = np.linspace(-0.0, 1.0, 41)
    data: dict[str, list[Any]] = {"cosine from": list(edges[:-1]), "cosine to": list(edges[1:])}
    sentences = []
    for place, (name, values) in enumerate(cosines.items()):
        array = np.asarray(values, dtype=np.float64)
        counts, _ = np.histogram(np.clip(array, 0, 1), bins=edges)
        data[name] = [int(count) for count in counts]
        plot.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            name=name,
            marker={"color": SERIES_COLOURS[place % len(SERIES_COLOURS)]},
            opacity=0.75,
            customdata=np.stack([edges[:-1], edges[1:]], axis=1),
            hovertemplate="%{y:,} features with cosine<br>%{customdata[0]:.3f} to "
            "%{customdata[1]:.3f}<extra></extra>",
        )
        median = short(float(np.median(array))) if array.size else "undefined"
        share = float((array >= 0.7).mean()) if array.size else 0.0
        sentences.append(f"{name}: median {median}, {100 * share:.1f} % at 0.7 or above")
    plot.update_layout(barmode="overlay", showlegend=True, legend={"orientation": "h", "y": 1.12})
    return Figure(
        name="match_histogram",
        title="Nearest feature of the other dictionary",
        plot=plot,
        caption="For every feature of one dictionary, the highest cosine between its decoder row "
        "and any of the other's. Several features may share one match.",
        alt="Histogram of best decoder cosines. " + "; ".join(sentences) + ".",
        data=data,
    )


def pareto(points: Sequence[dict[str, Any]], chosen: Sequence[str]) -> Figure | None:
    """Dictionaries by L0 and FVU; the chosen ones are large. None where nothing is measured.

    Args:
        points: each with "name", "l0" and "fvu", from the evaluation results.
        chosen: names drawn large, with their names beside them.
    """
    known = [p for p in points if p["l0"] is not None and p["fvu"] is not None and p["l0"] > 0]
    if not known:
        return None
    l0s = [p["l0"] for p in known]
    plot = new_plot(
        "L0: active latents per token (log)",
        "FVU (fraction of variance unexplained)",
        x_axis=log_axis([0.5 * min(l0s), 2 * max(l0s)]),
        rangemode="tozero",
    )
    for large in (False, True):
        drawn = [p for p in known if (p["name"] in chosen) == large]
        plot.add_scatter(
            x=[p["l0"] for p in drawn],
            y=[p["fvu"] for p in drawn],
            text=[p["name"] for p in drawn],
            mode="markers+text" if large else "markers",
            textposition=[("top center", "bottom center")[p % 2] for p in range(len(drawn))],
            marker={
                "size": 13 if large else 7,
                "color": ORANGE if large else SILENT_COLOUR,
                "symbol": "diamond" if large else "circle",
            },
            hovertemplate="%{text}<br>L0 %{x:.3g}, FVU %{y:.4f}<extra></extra>",
        )
    sentence = "; ".join(
        f"{p['name']}: L0 {short(p['l0'])}, FVU {p['fvu']:.4f}"
        for p in known
        if p["name"] in chosen
    )
    return Figure(
        name="pareto",
        title="Sparsity against error",
        plot=plot,
        caption="Every dictionary of the runs shown that has a core evaluation: fewer active "
        "latents to the left, less error below. Diamonds: the two compared.",
        alt=f"Scatter plot of FVU against L0 for {len(known)} dictionaries. {sentence}.",
        data={key: [p[key] for p in known] for key in ("name", "l0", "fvu")},
    )


def _count_axis(counts: Any, log_counts: bool) -> dict[str, Any]:
    if not log_counts:
        return {"rangemode": "tozero"}
    top = max(int(max(counts, default=1)), 1)
    # Half a count below one, so that a bin with a single entry can be seen.
    return {"type": "log", "range": [math.log10(0.5), math.log10(top) + 0.2], "dtick": 1}


def _add_bars(plot: Any, histogram: Histogram, colour: str, words: str) -> None:
    lows, highs = histogram.edges[:-1], histogram.edges[1:]
    plot.add_bar(
        x=(lows + highs) / 2,
        y=histogram.counts,
        width=highs - lows,
        marker_color=colour,
        customdata=np.stack([lows, highs], axis=1),
        hovertemplate="%{y:,} "
        + words
        + "<br>%{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>",
    )


def _fullest(histogram: Histogram, unit: str) -> str:
    if not int(histogram.counts.sum()):
        return "all bins are empty."
    place = int(np.argmax(histogram.counts))
    low, high = float(histogram.edges[place]), float(histogram.edges[place + 1])
    count = int(histogram.counts[place])
    return f"the fullest bin, {short(low)} to {short(high)}, holds {count:,} {unit}."


def _histogram_data(histogram: Histogram, what: str, unit: str) -> dict[str, list[Any]]:
    return {
        f"{what} from": [float(edge) for edge in histogram.edges[:-1]],
        f"{what} to": [float(edge) for edge in histogram.edges[1:]],
        unit: [int(count) for count in histogram.counts],
    }


def _power(decade: int) -> str:
    return "1" if decade == 0 else f"10<sup>{decade}</sup>"
