"""The charts of a comparison, each a function of the rows of one width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from saelab.errors import ArtifactError
from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.stats.spread import Spread

from ..curves import COSINES, fractions_for, mean_above, mean_at_least, reached_by_half
from ..definitions import Definition
from ..display import error_bars
from ..steering.numbers import metric_name
from .jobs import middle_k
from .numbers import density_curve
from .rows import PARETO_METRICS, AtCommonL0, MethodComparison, Row, labels_in_order
from .suite import CompareConfig

Columns = Mapping[str, Definition]
AXES = {
    "fvu": ("FVU (share of variance)", "FVU", "lower is better"),
    "loss_recovered_mean": (
        "loss recovered (against mean ablation)",
        "Loss recovered",
        "higher is better",
    ),
}
COSTS = {
    "train_seconds": ("Training time", "training time (s)"),
    "state_mib": ("Training memory", "state between steps (MiB)"),
}
STEERING = {
    "size": "Size: largest change of any token's logit, mean over contexts.",
    "consistency": "Consistency: change, in contexts that did not choose them, of the logits of "
    "the tokens that the latent promotes most in others.",
}
ERROR_BARS = "Error bars: standard deviation over seeds (none for a single seed)."
MCS = (
    "MCS: largest cosine of a latent's decoder row with one of another seed, mean over the other "
    "seeds. Mean over the seeds of each method; the table has the spread."
)
SHARE = Axis(title="share of latents", low=-0.02, high=1.02)
ROW_PIXELS = 17
TALL = 460


def charts_of(comparison: MethodComparison) -> tuple[Chart, ...]:
    """Every chart of every width, in reading order.

    Raises:
        ArtifactError: a steering result lacks a number.
    """
    columns, reference = comparison.columns, comparison.reference
    names = labels_in_order(comparison.members)
    middle = middle_k([member.candidate for member in comparison.members])
    charts: list[Chart] = []
    for d_sae, k in sorted(middle.items()):
        of_width = [row for row in comparison.rows if row.d_sae == d_sae]
        at_width = [at for at in comparison.compared if at.d_sae == d_sae]
        central = [row for row in of_width if row.k == k]
        drawn = [
            *(pareto(of_width, metric, columns, names) for metric in PARETO_METRICS),
            *(differences(at_width, metric, reference) for metric in PARETO_METRICS),
            dead_and_underused(of_width, columns),
            *densities(central, names),
            *consistency(central, names),
            *(steering(of_width, quantity, comparison.config) for quantity in STEERING),
            *(costs(of_width, name, columns) for name in COSTS),
        ]
        for chart in filter(None, drawn):
            if len(middle) > 1:
                title = f"{chart.title}, {d_sae:,} latents"
                chart = replace(chart, name=f"{chart.name}_{d_sae}", title=title)
            charts.append(chart)
    return tuple(charts)


def pareto(
    rows: Sequence[Row], metric: str, columns: Columns, names: Sequence[str]
) -> Chart | None:
    """A number against measured L0, a line per method; None without any."""
    axis, title, better = AXES[metric]
    known = [r for r in rows if r.values["l0_mean"].mean and r.values[metric].mean is not None]
    series, stated = [], []
    for style, label in enumerate(names):
        points = sorted(
            (row for row in known if row.label == label),
            key=lambda row: row.values["l0_mean"].mean or 0.0,
        )
        if not points:
            continue
        x, y = _means(points, "l0_mean"), _means(points, metric)
        stated.append(f"{label} {y[0]:.4g} at L0 {x[0]:.3g} to {y[-1]:.4g} at {x[-1]:.3g}")
        series.append(
            Series(
                name=label,
                x=x,
                y=y,
                mark="lines+dots",
                style=style,
                labels=[
                    f"k {row.k_text}, {row.values[metric].n} seeds, "
                    f"standard deviation of L0 {row.values['l0_mean'].sd or 0:.3g}"
                    for row in points
                ],
                **error_bars(row.values[metric] for row in points),
            )
        )
    if not series:
        return None
    return Chart(
        name=f"pareto_{metric}",
        title=f"{title} against L0 ({better})",
        caption=f"{columns[metric].text} One point per method and target L0, the mean over seeds. "
        f"{ERROR_BARS} Gradient-free inference for every method.",
        x=Axis(title="measured L0: active latents per token (log)", log=True),
        y=Axis(title=axis),
        series=tuple(series),
        summary=f"Lines of {title} against measured L0: {'; '.join(stated)}.",
        named_ends=True,
        height=TALL,
        wide=True,
    )


def _means(rows: Sequence[Row], name: str) -> list[Any]:
    return [row.values[name].mean for row in rows]


def differences(compared: Sequence[AtCommonL0], metric: str, reference: str) -> Chart | None:
    """How far each method is from the reference at the same L0; None where nothing is known."""
    others = [at for at in compared if at.metric == metric and at.label != reference]
    known = [at for at in others if at.difference.mean is not None]
    if not known:
        return None
    _, title, better = AXES[metric]
    series = [
        _bars(
            f"L0 {l0:g}",
            [(at.label, at.difference) for at in known if at.l0 == l0],
            labels=[f"{at.difference.n} seeds" for at in known if at.l0 == l0],
        )
        for l0 in sorted({at.l0 for at in known})
    ]
    stated = "; ".join(f"{at.label} {at.difference.mean:+.3g} at L0 {at.l0:g}" for at in known)
    return _bar_chart(
        f"difference_{metric}",
        f"{title}: difference to {reference} at the same L0 ({better})",
        series,
        x=Axis(title=f"{title}, difference to {reference} at the same L0"),
        caption=f"Value of each method less that of {reference}, both interpolated (linear in log "
        f"L0) between the points of the same seed, mean over seeds. {ERROR_BARS} Nothing is "
        f"extrapolated: {len(others) - len(known)} of {len(others)} pairs of method and L0 are "
        "outside the range of a method's points and not drawn.",
        summary=f"Bars of the difference in {title} to {reference}: {stated}.",
    )


def dead_and_underused(rows: Sequence[Row], columns: Columns) -> Chart:
    """Dead and underused latents, two bars per method and target L0."""
    shares = {"dead": "dead_fraction", "underused, dead ones included": "underused_fraction"}
    series = [
        _bars(
            name,
            [(f"{row.label}, k {row.k_text}", row.values[key]) for row in rows],
            dashed=key == "underused_fraction",
        )
        for name, key in shares.items()
    ]
    stated = "; ".join(
        f"{row.label} k {row.k_text} "
        + " and ".join(f"{row.values[key].mean or 0:.1%}" for key in shares.values())
        for row in rows
    )
    return _bar_chart(
        "dead_and_underused",
        "Dead and underused latents",
        series,
        x=Axis(title="share of latents", low=0.0),
        y=Axis(title="method and target L0"),
        caption=f"Dead: {columns['dead_fraction'].text} Underused: "
        f"{columns['underused_fraction'].text} Mean over seeds. {ERROR_BARS}",
        summary=f"Bars of the share of latents that are dead and underused: {stated}.",
        wide=True,
    )


def costs(rows: Sequence[Row], name: str, columns: Columns) -> Chart | None:
    """What training costs, a bar per method and target L0; None where no run says."""
    known = [row for row in rows if row.values[name].mean is not None]
    if not known:
        return None
    title, axis = COSTS[name]
    series = [
        _bars(f"k {k}", [(row.label, row.values[name]) for row in known if row.k_text == k])
        for k in dict.fromkeys(row.k_text for row in known)
    ]
    stated = "; ".join(f"{r.label} k {r.k_text} {r.values[name].mean:.3g}" for r in known)
    return _bar_chart(
        name,
        title,
        series,
        x=Axis(title=axis, low=0.0),
        caption=f"{columns[name].text} Mean over seeds. {ERROR_BARS}",
        summary=f"Bars of {axis}: {stated}.",
    )


def _bars(name: str, bars: Sequence[tuple[str, Spread]], **marks: Any) -> Series:
    """Horizontal bars with a name each."""
    spreads = [spread for _, spread in bars]
    return Series(
        name=name,
        x=[spread.mean for spread in spreads],
        y=[label for label, _ in bars],
        mark="bars",
        axis="x",
        **error_bars(spreads),
        **marks,
    )


def _bar_chart(
    name: str, title: str, series: Sequence[Series], *, y: Axis | None = None, **parts: Any
) -> Chart:
    n_bars = sum(len(group.y) for group in series)
    return Chart(
        name=name,
        title=title,
        y=y or Axis(title="method"),
        series=tuple(series),
        height=max(340, 110 + ROW_PIXELS * n_bars),
        **parts,
    )


def densities(rows: Sequence[Row], names: Sequence[str]) -> list[Chart]:
    """Density against rank with the fitted law, a chart per method, all with the same axes."""
    curves = [(row, density_curve([member.density for member in row.members])) for row in rows]
    curves = [(row, curve) for row, curve in curves if curve["rank"]]
    ranks = [float(rank) for _, curve in curves for rank in curve["rank"]]
    values = [value for _, curve in curves for value in curve["density"]]
    charts = []
    for row, curve in curves:
        style, rank, density = names.index(row.label), curve["rank"], curve["density"]
        x: list[Any] = [float(value) for value in rank]
        series = [Series(name=row.label, x=x, y=density, style=style)]
        if curve["law"]:
            series.append(Series(name="Zipf's law", x=x, y=curve["law"], style=5, dashed=True))
        charts.append(
            Chart(
                name=f"density_by_rank_{style}",
                title=f"Density against rank: {row.label} (k {row.k_text})",
                caption="Density, the fraction of the evaluated rows on which a latent is active, "
                "of the latents in falling order, mean over seeds at each rank. Dashed: the law "
                "(rank + q)^-s fitted to it by least squares in log density over ranks 1 % to 70 % "
                "of those that fired. Every method has the same axes; latents that never fired "
                "are not drawn.",
                x=Axis(title="rank (log)", log=True, low=min(ranks), high=max(ranks)),
                y=Axis(title="density (log)", log=True, low=min(values), high=max(values)),
                series=tuple(series),
                summary=f"Falling curve of density against rank: {row.label} from "
                f"{density[0]:.2g} to {density[-1]:.2g} at rank {rank[-1]:,}.",
            )
        )
    return charts


def consistency(rows: Sequence[Row], names: Sequence[str]) -> list[Chart]:
    """How many latents other seeds have too; none where no seeds were compared."""
    compared = {row: [m.mcs for m in row.members if m.mcs is not None] for row in rows}
    compared = {row: mcs for row, mcs in compared.items() if len(mcs) == len(row.members)}
    if not compared:
        return []
    first = next(iter(compared))
    threshold = float(first.members[0].results["consistency"].settings["threshold"])
    by_rank, by_cosine = [], []
    for row, mcs in compared.items():
        name, style = row.label, names.index(row.label)
        fractions = fractions_for(max(map(len, mcs)))
        orders = [torch.arange(len(of_member)) for of_member in mcs]
        above = mean_above(mcs, orders, threshold, fractions)
        by_rank.append(Series(name=name, x=[*fractions], y=above, style=style))
        by_cosine.append(Series(name=name, x=[*COSINES], y=mean_at_least(mcs), style=style))
    floors = [at for row in compared if (at := row.values["mcs_random"].mean) is not None]
    of_all = "; ".join(f"{line.name} {line.y[-1]:.2f} of all" for line in by_rank)
    half = "; ".join(f"{line.name} {reached_by_half(line.y):.2f}" for line in by_cosine)
    return [
        Chart(
            name="consistency_by_rank",
            title=f"Are the most active latents found by other seeds? (k {first.k_text})",
            caption="Among the top fraction of the alive latents by max activation: share whose "
            f"MCS is above {threshold:g}. {MCS}",
            x=Axis(title="top fraction by max activation (log)", log=True),
            y=SHARE,
            series=tuple(by_rank),
            summary=f"Curves of the share of latents with MCS above {threshold:g}: {of_all}.",
            named_ends=True,
            height=TALL,
        ),
        Chart(
            name="consistency_by_cosine",
            title=f"How like their counterparts latents are (k {first.k_text})",
            caption="Share of the alive latents with at least this MCS; dashed: the mean of random "
            f"directions against the same dictionaries. {MCS}",
            x=Axis(
                title="cosine with the nearest latent of the other seeds (MCS)", low=0.0, high=1.0
            ),
            y=SHARE,
            series=tuple(by_cosine),
            lines=(
                ReferenceLine(value=sum(floors) / len(floors), label="random directions", axis="x"),
            ),
            summary="Falling curves of the share of latents against cosine; half of them reach: "
            f"{half}.",
            height=TALL,
        ),
    ]


def steering(rows: Sequence[Row], quantity: str, config: CompareConfig) -> Chart | None:
    """Quantiles over latents of one steering quantity by dictionary; None where none was steered.

    Raises:
        ArtifactError: a result leaves the quantity undefined.
    """
    steered = [(row, m) for row in rows for m in row.members if "steering" in m.results]
    if not steered:
        return None
    labels = [row.label for row, _ in steered]
    names: list[Any] = [
        row.label
        if labels.count(row.label) == 1
        else f"{row.label} k {row.k_text} seed {member.candidate.seed}"
        for row, member in steered
    ]
    names.append("random directions")

    def values(what: str) -> list[Any]:
        wanted = [(member, what) for _, member in steered] + [(steered[0][1], f"random_{what}")]
        known = []
        for member, name in wanted:
            key = metric_name(quantity, name, config.steering_strength)
            known.append(member.results["steering"].value(key))
            if known[-1] is None:
                raise ArtifactError(
                    f"the steering result of {member.candidate.name} leaves {key} undefined: it "
                    "was edited; evaluate again with --overwrite"
                )
        return known

    median = values("q50")
    series = [
        Series(
            name="median, with 5 % and 95 % quantiles",
            x=names,
            y=median,
            mark="dots",
            low=values("q05"),
            high=values("q95"),
        )
    ]
    others = {"25 % quantile": "q25", "75 % quantile": "q75", "mean": "mean"}
    for style, (name, what) in enumerate(others.items(), start=1):
        series.append(Series(name=name, x=names, y=values(what), mark="dots", style=style))
    stated = "; ".join(f"{name} {value:.3g}" for name, value in zip(names, median, strict=True))
    return Chart(
        name=f"steering_{quantity}",
        title=f"Steering: {quantity} of a latent's effect",
        caption=f"{STEERING[quantity]} A latent's unit decoder row times "
        f"{config.steering_strength:g} × the mean norm of the rows is added at the last position "
        "of random held-out contexts. Quantiles and mean over the steered latents of one "
        "dictionary. Random directions of the same length are the floor.",
        x=Axis(title="dictionary"),
        y=Axis(title=f"{quantity} of the effect (logits)"),
        series=tuple(series),
        summary=f"Medians of the {quantity} of steering effects in logits: {stated}.",
        height=TALL,
    )
