"""The charts of the pages, each a pure function from plain numbers; the map is drawn here too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from saelab.features.records import FeatureRecord, Histogram, LogitLens
from saelab.formats.chart import Axis, Chart, Number, ReferenceLine, Series
from saelab.report.figure import ORANGE, Figure, log_axis, new_plot
from saelab.report.line_styles import GREY

from .token_html import short, short_label, visible_text

CHART_HEIGHT = 280
MARKED_LEVELS = (0.5, 0.9, 0.99)
SHARED_FROM = 0.7
"""Cosine from which two dictionaries share a feature."""
PURPLE_STYLE, GREY_STYLE = 3, 5
BAR_PIXELS = 26
PIXELS_OF_A_LETTER, PIXELS_OF_A_LINE = 9, 17
"""What a bold word on the map takes."""
REGIONS_DEFINITION = (
    " Words on the map: of the regions that k-means finds on it, those where a tenth of the "
    "features, and at least four, have a top token in common that is ten times rarer elsewhere."
)
LONGEST_NAME = 34


def activation_histogram(
    record: FeatureRecord, what: str = "tokens", *, log_counts: bool = True
) -> Chart | None:
    """Active tokens (`what`) of a feature by activation, with quantiles; None if it never fires."""
    histogram = record.histogram
    if histogram is None:
        return None
    quantiles = [(level, value) for level, value in record.quantiles if level in MARKED_LEVELS]
    marks = ", ".join(f"{100 * level:g} % at {short(value)}" for level, value in quantiles)
    return Chart(
        name="activation_histogram",
        title="Activations",
        caption=f"The {record.n_active:,} {what} on which the feature is active, by activation, "
        f"in {len(histogram.counts)} equal bins from 0 to the maximum; an edge belongs to the bin "
        "above it. Dashed: quantiles of these activations.",
        summary=f"Histogram of {record.n_active:,} activations of feature {record.id}, up to "
        f"{short(record.max_act)}: {_fullest(histogram, what)}"
        + (f" Quantiles: {marks}." if marks else ""),
        x=Axis(title="activation"),
        y=_counts(what, log=log_counts),
        series=(_bars(histogram, what),),
        lines=tuple(
            ReferenceLine(value=value, label=f"{100 * level:g} %", axis="x")
            for level, value in quantiles
        ),
        height=CHART_HEIGHT,
    )


def logit_histogram(lens: LogitLens) -> Chart:
    """What a feature adds to each token's logit, over the vocabulary."""
    histogram, moments = lens.histogram, lens.moments
    tail = ""
    if lens.top:
        best = lens.top[0]
        tail = f" The highest is {visible_text(best.text)!r} with {best.value:+.3g}."
    return Chart(
        name="logit_histogram",
        title="Logits over the vocabulary",
        caption="What one unit of this feature adds to each token's logit: decoder row times the "
        "final norm's gain, through the unembedding. Skewness "
        f"{short(moments.skewness)}, kurtosis {short(moments.kurtosis)} (3 for a normal "
        "distribution; far above, the feature speaks for a few tokens).",
        summary=f"Histogram of logits over {int(histogram.counts.sum()):,} tokens, from "
        f"{short(float(histogram.edges[0]))} to {short(float(histogram.edges[-1]))}: "
        f"{_fullest(histogram, 'tokens')}{tail}",
        x=Axis(title="logit per unit of activation"),
        y=_counts("tokens of the vocabulary", log=True),
        series=(_bars(histogram, "tokens", style=PURPLE_STYLE),),
        height=CHART_HEIGHT,
    )


def _counts(title: str, *, log: bool) -> Axis:
    # Half a count below one, so that a bin with a single entry can be seen.
    return Axis(title=f"{title} (log)", log=True, low=0.5) if log else Axis(title=title, low=0)


def _bars(histogram: Histogram, name: str, style: int = 0) -> Series:
    edges, counts = histogram.edges.tolist(), histogram.counts.tolist()
    return Series(name=name, x=edges, y=counts, mark="histogram", style=style)


def _fullest(histogram: Histogram, what: str) -> str:
    if not int(histogram.counts.sum()):
        return "all bins are empty."
    index = int(np.argmax(histogram.counts))
    low, high = histogram.edges[index : index + 2].tolist()
    return (
        f"the fullest bin, {short(low)} to {short(high)}, holds {histogram.counts[index]:,} {what}."
    )


def density_histogram(
    densities: Mapping[str, Any], n_tokens: Mapping[str, int], what: str = "tokens"
) -> Chart:
    """Features by log density, of the tokens (`what`) counted, for one dictionary or several."""
    active = {name: 100 * values[values > 0] for name, values in _arrays(densities).items()}
    lowest = min((values.min() for values in active.values() if values.size), default=1e-4)
    low = math.floor(math.log10(lowest))
    edges = np.logspace(low, 2, max(1, 2 - low) * 5 + 1)
    silent = {name: len(densities[name]) - values.size for name, values in active.items()}
    sentences = [
        f"{name}: {len(densities[name]):,} features, {silent[name]:,} never active on "
        f"{n_tokens.get(name, 0):,} {what}, median density of the others "
        f"{short(float(np.median(values)) if values.size else None)} %"
        for name, values in active.items()
    ]
    return Chart(
        name="density_histogram",
        title="How often features are active",
        caption=f"Features by density: {what} on which the feature is active over {what} counted, "
        "in bins equal in log10. Features that were never active are not drawn: "
        + ", ".join(f"{number:,} of {name}" for name, number in silent.items())
        + ".",
        summary="Histogram of feature density. " + "; ".join(sentences) + ".",
        x=Axis(title=f"density (% of {what}, log)", log=True),
        y=Axis(title="features", low=0),
        series=_binned(active, edges),
    )


def match_histogram(cosines: Mapping[str, Any]) -> Chart:
    """How well each dictionary's features are matched in the other, a line for each direction."""
    arrays = _arrays(cosines)
    sentences = [
        f"{name}: median {short(float(np.median(values)) if values.size else None)}, "
        f"{100 * float((values >= SHARED_FROM).mean()) if values.size else 0:.1f} % at "
        f"{SHARED_FROM} or above"
        for name, values in arrays.items()
    ]
    return Chart(
        name="match_histogram",
        title="Nearest feature of the other dictionary",
        caption="For every feature of one dictionary, the highest cosine between its decoder row "
        "and any of the other's. Several features may share one match.",
        summary="Histogram of best decoder cosines. " + "; ".join(sentences) + ".",
        x=Axis(title="cosine with the nearest decoder row of the other"),
        y=Axis(title="features", low=0),
        series=_binned(arrays, np.linspace(_low_edge(arrays), 1, 41)),
        wide=True,
    )


def _low_edge(arrays: Mapping[str, Float[np.ndarray, " features"]]) -> float:
    """The tenth at or below the smallest value: where an axis of cosines begins."""
    smallest = min((float(values.min()) for values in arrays.values() if values.size), default=0.0)
    return min(0.9, max(-1.0, math.floor(10 * smallest) / 10))


def _arrays(values: Mapping[str, Any]) -> dict[str, Float[np.ndarray, " features"]]:
    return {name: np.asarray(given, dtype=np.float64) for name, given in values.items()}


def _binned(
    values: Mapping[str, Float[np.ndarray, " features"]], edges: Float[np.ndarray, " edges"]
) -> tuple[Series, ...]:
    """One histogram as bars, several as steps."""
    drawn = []
    for name, array in values.items():
        counts = np.histogram(np.clip(array, edges[0], edges[-1]), edges)[0].tolist()
        if len(values) == 1:
            drawn.append(Series(name=name, x=edges.tolist(), y=counts, mark="histogram"))
        else:
            drawn.append(Series(name=name, x=edges.tolist(), y=[*counts, 0], mark="steps"))
    return tuple(drawn)


def pareto(points: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> Chart | None:
    """Dictionaries by L0 and FVU, the chosen ones by name. None where nothing is measured.

    Args:
        points: each with "name", "l0" and "fvu", from the evaluation results.
        chosen: names that stand out.
    """
    known = [p for p in points if p["l0"] is not None and p["fvu"] is not None and p["l0"] > 0]
    if not known:
        return None
    named = {name: [p for p in known if p["name"] == name] for name in chosen}
    named["other dictionaries"] = [p for p in known if p["name"] not in chosen]
    stated = [
        f"{p['name']}: L0 {short(p['l0'])}, FVU {p['fvu']:.4f}"
        for p in known
        if p["name"] in chosen
    ]
    return Chart(
        name="pareto",
        title="Sparsity against error",
        caption="Every dictionary of the runs shown that has a core evaluation: fewer active "
        "latents to the left, less error below.",
        summary=f"Scatter plot of FVU against L0 for {len(known)} dictionaries. "
        f"{'; '.join(stated)}.",
        x=Axis(title="L0: active latents per token (log)", log=True),
        # A range around a single value would reach below zero.
        y=Axis(
            title="FVU (fraction of variance unexplained)",
            low=0 if len({p["fvu"] for p in known}) == 1 else None,
        ),
        series=tuple(
            Series(
                name=name,
                x=[p["l0"] for p in members],
                y=[p["fvu"] for p in members],
                labels=[p["name"] for p in members],
                mark="dots",
                style=index if name in chosen else GREY_STYLE,
            )
            for index, (name, members) in enumerate(named.items())
            if members
        ),
        wide=True,
    )


def signed_bars(
    *,
    name: str,
    title: str,
    axis: str,
    caption: str,
    rows: Sequence[tuple[str, float]],
    positive: str,
    negative: str,
    marks: str = "feature",
) -> Chart:
    """Horizontal bars to both sides of zero, the first row on top; the sign is written out.

    Args:
        axis: what the bars measure, with its unit.
        positive: what a bar to the right means, for the sentence.
        negative: what a bar to the left means.
        marks: what has a bar.
    """
    summary = f"{title}."
    for sign, meaning in ((1, positive), (-1, negative)):
        side = [f"{visible_text(label)} {value:+.3g}" for label, value in rows if sign * value > 0]
        if side:
            summary += f" {len(side)} {meaning}, most of all {', '.join(side[:3])}."
    return _across(
        {axis: [value for _, value in rows]},
        [label for label, _ in rows],
        name=name,
        title=title,
        caption=caption,
        summary=summary,
        x=Axis(title=axis),
        y=Axis(title=marks),
        lines=(ReferenceLine(value=0, label="", axis="x"),),
    )


def probability_shift(
    gaining: Sequence[tuple[str, float, float]],
    losing: Sequence[tuple[str, float, float]],
    kl: float,
) -> Chart:
    """Probabilities of next tokens before and after steering, as pairs of bars."""
    rows = [*gaining, *losing]
    described = ", ".join(
        f"{repr_token(token)} from {before:.3g} to {after:.3g}"
        for token, before, after in (*gaining[:3], *losing[:3])
    )
    return _across(
        {"baseline": [row[1] for row in rows], "steered": [row[2] for row in rows]},
        [repr_token(token) for token, _, _ in rows],
        name="next_token_shift",
        title="The next token, before and after",
        caption="Probability without the edits (baseline) and with them (steered): first the "
        "tokens that gain most, then those that lose most.",
        summary=f"Next-token probabilities before and after steering, KL {kl:.3g} nats: "
        f"{described or 'no change'}.",
        x=Axis(title="probability", low=0),
        y=Axis(title="token"),
    )


def _across(columns: Mapping[str, list[Number]], names: Sequence[str], **parts: Any) -> Chart:
    """Horizontal bars, a group for each name; equal names are numbered to stay apart."""
    fitting = [short_label(visible_text(name), LONGEST_NAME) for name in names]
    repeats = [fitting[:index].count(name) for index, name in enumerate(fitting)]
    shown: list[Any] = [
        f"{name} ({number + 1})" if number else name
        for name, number in zip(fitting, repeats, strict=True)
    ]
    signed = len(columns) == 1
    return Chart(
        **parts,
        series=tuple(
            Series(
                name=title,
                x=[*values],
                y=shown,
                mark="bars",
                axis="x",
                text=[f"{value:+.3g}" for value in values] if signed else None,
            )
            for title, values in columns.items()
        ),
        height=120 + BAR_PIXELS * len(shown),
    )


def repr_token(token: str) -> str:
    """A token in quotes, its spaces and line ends visible."""
    return f"“{visible_text(token)}”"


def crowded(
    regions: Sequence[tuple[str, float, float]], width: float = 270.0, height: float = 500.0
) -> list[int]:
    """Words of a map that would be written over earlier ones on a plot so small.

    Args:
        regions: words and where they stand, in the units of the map.
        width: of the plot, in pixels.
        height: the same.
    """
    if not regions:
        return []
    at = np.array([where for _, *where in regions])
    x, y = (at / np.maximum(np.ptp(at, axis=0), 1e-9) * (width, height)).T
    half = [PIXELS_OF_A_LETTER * len(words) / 2 for words, *_ in regions]
    kept: list[int] = []
    for index in range(len(regions)):
        if all(
            abs(y[index] - y[k]) > PIXELS_OF_A_LINE or abs(x[index] - x[k]) > half[index] + half[k]
            for k in kept
        ):
            kept.append(index)
    return [index for index in range(len(regions)) if index not in kept]


def feature_map(
    table: Mapping[str, Shaped[np.ndarray, " features"]],
    hover: Sequence[str],
    *,
    lit: tuple[str, Sequence[bool] | Bool[np.ndarray, " features"]] | None = None,
    method: str = "Decoder directions in two dimensions.",
    regions: Sequence[tuple[str, float, float]] = (),
) -> Figure:
    """Features in 2-D; points are chosen by clicking.

    Args:
        table: columns "id", "map_x", "map_y" and "density" of the features shown.
        lit: what the features lit up do ("have a label"), and which they are; None: all are
            coloured by log10 of density.
        method: sentences on how the coordinates were computed, for the caption.
        regions: words written on the map, and where.
    """
    plot = new_plot(
        "map axis 1 (no unit)", "map axis 2 (no unit)", x_axis={"showgrid": False}, showgrid=False
    )
    density = 100 * np.nan_to_num(table["density"])
    active = density > 0
    if lit is not None:
        chosen = np.array(lit[1], dtype=bool)
        groups = {
            "others": (~chosen, {"color": GREY, "opacity": 0.35}),
            lit[0]: (chosen, {"color": ORANGE, "size": 9}),
        }
    else:
        scale = {"title": {"text": "density, %"}, "thickness": 12, "orientation": "h", "y": -0.28}
        ticks = log_axis(density[active].tolist())
        scale |= {"tickvals": np.log10(ticks["tickvals"]), "ticktext": ticks["ticktext"]}
        colours = {"color": np.log10(density[active]), "colorscale": "Cividis", "colorbar": scale}
        groups = {
            "active": (active, colours),
            "never active": (~active, {"color": GREY, "symbol": "x"}),
        }
    groups = {name: group for name, group in groups.items() if group[0].any()}
    texts = np.array(hover, dtype=object)
    for name, (members, marker) in groups.items():
        plot.add_scattergl(
            x=table["map_x"][members].tolist(),
            y=table["map_y"][members].tolist(),
            mode="markers",
            name=name,
            marker={"size": 6, "opacity": 0.75, **marker},
            customdata=table["id"][members].tolist(),
            text=texts[members].tolist(),
            hovertemplate="%{text}<extra></extra>",
        )
    plot.update_layout(
        height=620, showlegend=len(groups) > 1, legend={"orientation": "h", "y": 1.06}
    )
    for words, x, y in regions:
        plot.add_annotation(x=x, y=y, text=f"<b>{escape(words)}</b>", showarrow=False, opacity=0.9)
    span = f"{density[active].min():.2g} to {density.max():.2g} %" if active.any() else "none"
    colour = "log10 of density" if lit is None else f"whether they {lit[0]}"
    return Figure(
        name="feature_map",
        title="Map of features",
        plot=plot,
        caption=f"Each point is a feature. {method} Coloured by {colour}. Click a point to open "
        "it; the wheel zooms, lasso and box list features."
        + (REGIONS_DEFINITION if regions else ""),
        alt=f"Scatter plot of {len(hover):,} features by decoder row, coloured by {colour}; "
        f"densities of active features: {span}.",
        data={
            title: table[column].tolist()
            for title, column in (("feature", "id"), ("x", "map_x"), ("y", "map_y"))
        }
        | {"density, %": density.tolist()},
        wide=True,
    )
