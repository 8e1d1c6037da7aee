"""The charts of a comparison, each a function of the rows of one width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from saelab.errors import ArtifactError
from saelab.formats.chart import Axis, Chart, ReferenceLine, Series, Value
from saelab.formats.evaluation_result import EvaluationResult
from saelab.stats.spread import Spread

from ..steering.definitions import metric_name
from ..suite import Definition
from .config import CompareConfig
from .jobs import middle_k
from .numbers import Agreement, MeasuredCandidate, cosine_curve, density_curve, rank_curve
from .rows import PARETO_METRICS, AtCommonL0, Row, labels_in_order

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
ROW_PIXELS = 17
TALL = 460


def charts_of(
    found: Sequence[MeasuredCandidate],
    rows: Sequence[Row],
    compared: Sequence[AtCommonL0],
    columns: Mapping[str, Definition],
    reference: str,
    config: CompareConfig,
) -> tuple[Chart, ...]:
    """Every chart of every width, in reading order.

    Raises:
        ArtifactError: a steering result lacks a number.
    """
    names = labels_in_order(found)
    middle = middle_k([one.candidate for one in found])
    charts: list[Chart] = []
    for d_sae, k in sorted(middle.items()):
        of_width = [row for row in rows if row.d_sae == d_sae]
        central = [row for row in of_width if row.k == k]
        drawn = [
            *(pareto(of_width, metric, columns, names) for metric in PARETO_METRICS),
            *(
                differences(
                    [at for at in compared if (at.metric, at.d_sae) == (metric, d_sae)],
                    metric,
                    reference,
                )
                for metric in PARETO_METRICS
            ),
            dead_and_underused(of_width, columns),
            *densities(central, names),
            shares_by_rank(central, names),
            shares_by_cosine(central, names),
            *(steering(of_width, quantity, config) for quantity in STEERING),
            *(costs(of_width, name, columns) for name in COSTS),
        ]
        for chart in filter(None, drawn):
            if len(middle) > 1:
                title = f"{chart.title}, {d_sae:,} latents"
                chart = replace(chart, name=f"{chart.name}_{d_sae}", title=title)
            charts.append(chart)
    return tuple(charts)


def pareto(
    rows: Sequence[Row], metric: str, columns: Mapping[str, Definition], names: Sequence[str]
) -> Chart | None:
    """A number against measured L0, a line per method; None without any."""
    axis, title, better = AXES[metric]
    series, stated = [], []
    for label in names:
        points = [
            (row.values["l0_mean"].mean or 0.0, row.values[metric], row)
            for row in rows
            if row.label == label and row.values["l0_mean"].mean
        ]
        points = sorted(
            (point for point in points if point[1].mean is not None), key=lambda point: point[0]
        )
        if not points:
            continue
        (first, at_first, _), (last, at_last, _) = points[0], points[-1]
        stated.append(
            f"{label} {at_first.mean:.4g} at L0 {first:.3g} to {at_last.mean:.4g} at {last:.3g}"
        )
        series.append(
            Series(
                name=label,
                x=[l0 for l0, _, _ in points],
                y=[spread.mean for _, spread, _ in points],
                mark="lines+dots",
                style=names.index(label),
                labels=[
                    f"k {row.k_text}, {spread.n} seeds, "
                    f"standard deviation of L0 {row.values['l0_mean'].sd or 0:.3g}"
                    for _, spread, row in points
                ],
                **_ends(spread for _, spread, _ in points),
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


def differences(compared: Sequence[AtCommonL0], metric: str, reference: str) -> Chart | None:
    """How far each method is from the reference at the same L0; None where nothing is known."""
    others = [at for at in compared if at.label != reference]
    known = [at for at in others if at.difference.mean is not None]
    if not known:
        return None
    _, title, better = AXES[metric]
    series = [
        _across(
            f"L0 {l0:g}",
            [(at.label, at.difference) for at in known if at.l0 == l0],
            [f"{at.difference.n} seeds" for at in known if at.l0 == l0],
        )
        for l0 in sorted({at.l0 for at in known})
    ]
    stated = "; ".join(f"{at.label} {at.difference.mean:+.3g} at L0 {at.l0:g}" for at in known)
    return Chart(
        name=f"difference_{metric}",
        title=f"{title}: difference to {reference} at the same L0 ({better})",
        caption=f"Value of each method less that of {reference}, both interpolated (linear in log "
        f"L0) between the points of the same seed, mean over seeds. {ERROR_BARS} Nothing is "
        f"extrapolated: {len(others) - len(known)} of {len(others)} pairs of method and L0 are "
        "outside the range of a method's points and not drawn.",
        x=Axis(title=f"{title}, difference to {reference} at the same L0"),
        y=Axis(title="method"),
        series=tuple(series),
        summary=f"Bars of the difference in {title} to {reference}: {stated}.",
        height=_height(series),
    )


def dead_and_underused(rows: Sequence[Row], columns: Mapping[str, Definition]) -> Chart:
    """Dead and underused latents, two bars per method and target L0."""
    shares = {"dead": "dead_fraction", "underused, dead ones included": "underused_fraction"}
    series = [
        replace(
            _across(name, [(f"{row.label}, k {row.k_text}", row.values[key]) for row in rows]),
            dashed=key == "underused_fraction",
        )
        for name, key in shares.items()
    ]
    stated = "; ".join(
        f"{row.label} k {row.k_text} {row.values['dead_fraction'].mean or 0:.1%} and "
        f"{row.values['underused_fraction'].mean or 0:.1%}"
        for row in rows
    )
    return Chart(
        name="dead_and_underused",
        title="Dead and underused latents",
        caption=f"Dead: {columns['dead_fraction'].text} Underused: "
        f"{columns['underused_fraction'].text} Mean over seeds. {ERROR_BARS}",
        x=Axis(title="share of latents", low=0.0),
        y=Axis(title="method and target L0"),
        series=tuple(series),
        summary=f"Bars of the share of latents that are dead and underused: {stated}.",
        height=_height(series),
        wide=True,
    )


def densities(rows: Sequence[Row], names: Sequence[str]) -> list[Chart]:
    """Density against rank with the fitted law, a chart per method, all with the same axes."""
    curves = [(row, density_curve([one.density for one in row.members])) for row in rows]
    curves = [(row, curve) for row, curve in curves if curve["rank"]]
    if not curves:
        return []
    ranks = [rank for _, curve in curves for rank in curve["rank"]]
    values = [value for _, curve in curves for value in curve["density"]]
    charts = []
    for row, curve in curves:
        style = names.index(row.label)
        density: list[Value] = [*curve["density"]]
        series = [
            Series(
                name=row.label,
                x=[float(rank) for rank in curve["rank"]],
                y=density,
                style=style,
            ),
        ]
        if curve["law"]:
            law: list[Value] = [*curve["law"]]
            series.append(
                Series(
                    name="Zipf's law",
                    x=[float(rank) for rank in curve["rank"]],
                    y=law,
                    style=5,
                    dashed=True,
                )
            )
        charts.append(
            Chart(
                name=f"density_by_rank_{style}",
                title=f"Density against rank: {row.label} (k {row.k_text})",
                caption="Density, the fraction of the evaluated rows on which a latent is active, "
                "of the latents in falling order, mean over seeds at each rank. Dashed: the law "
                "(rank + q)^-s fitted to it by least squares in log density over ranks 1 % to 70 % "
                "of those that fired. Every method has the same axes; latents that never fired "
                "are not drawn.",
                x=Axis(title="rank (log)", log=True, low=float(min(ranks)), high=float(max(ranks))),
                y=Axis(title="density (log)", log=True, low=min(values), high=max(values)),
                series=tuple(series),
                summary=f"Falling curve of density against rank: {row.label} from "
                f"{curve['density'][0]:.2g} to {curve['density'][-1]:.2g} at rank "
                f"{curve['rank'][-1]:,}.",
            )
        )
    return charts


def shares_by_rank(rows: Sequence[Row], names: Sequence[str]) -> Chart | None:
    """Share of latents found again among the most active; None where no seeds were compared."""
    compared, threshold = _compared(rows)
    if not compared:
        return None
    curves = [(row, *rank_curve(_agreements(row), threshold)) for row in compared]
    stated = "; ".join(f"{row.label} {share[-1]:.2f} of all" for row, _, share in curves)
    return Chart(
        name="consistency_by_rank",
        title=f"Are the most active latents found by other seeds? (k {compared[0].k_text})",
        caption="Among the top fraction of the alive latents by max activation: share whose MCS is "
        f"above {threshold:g}. {_MCS}",
        x=Axis(title="top fraction by max activation (log)", log=True),
        y=Axis(title="share of latents", low=-0.02, high=1.02),
        series=tuple(
            Series(name=row.label, x=[*x], y=[*share], style=names.index(row.label))
            for row, x, share in curves
        ),
        summary=f"Curves of the share of latents with MCS above {threshold:g}: {stated}.",
        named_ends=True,
        height=TALL,
    )


def shares_by_cosine(rows: Sequence[Row], names: Sequence[str]) -> Chart | None:
    """Share of latents by their cosine with other seeds; None where no seeds were compared."""
    compared, _ = _compared(rows)
    if not compared:
        return None
    curves = [(row, *cosine_curve(_agreements(row))) for row in compared]
    floors = [value for row in compared if (value := row.values["mcs_random"].mean) is not None]
    floor = ReferenceLine(value=sum(floors) / len(floors), label="random directions", axis="x")
    stated = "; ".join(f"{row.label} {_at_half(x, share):.2f}" for row, x, share in curves)
    return Chart(
        name="consistency_by_cosine",
        title=f"How like their counterparts latents are (k {compared[0].k_text})",
        caption="Share of the alive latents with at least this MCS; dashed: the mean of random "
        f"directions against the same dictionaries. {_MCS}",
        x=Axis(title="cosine with the nearest latent of the other seeds (MCS)", low=0.0, high=1.0),
        y=Axis(title="share of latents", low=-0.02, high=1.02),
        series=tuple(
            Series(name=row.label, x=[*x], y=[*share], style=names.index(row.label))
            for row, x, share in curves
        ),
        lines=(floor,),
        summary="Falling curves of the share of latents against cosine; half of them reach: "
        f"{stated}.",
        height=TALL,
    )


_MCS = (
    "MCS: largest cosine of a latent's decoder row with one of another seed, mean over the other "
    "seeds. Mean over the seeds of each method; the table has the spread."
)


def _compared(rows: Sequence[Row]) -> tuple[list[Row], float]:
    """The rows whose seeds were compared, and the threshold above which latents are the same."""
    compared = [row for row in rows if all(one.agreement is not None for one in row.members)]
    if not compared:
        return [], 0.0
    return compared, float(compared[0].members[0].results["consistency"].settings["threshold"])


def _agreements(row: Row) -> list[Agreement]:
    return [one.agreement for one in row.members if one.agreement is not None]


def steering(rows: Sequence[Row], quantity: str, config: CompareConfig) -> Chart | None:
    """Quantiles over latents of one steering quantity by dictionary; None where none was steered.

    Raises:
        ArtifactError: a result leaves the quantity undefined.
    """
    steered = [(row, one) for row in rows for one in row.members if "steering" in one.results]
    if not steered:
        return None
    labels = [row.label for row, _ in steered]
    names = [
        row.label
        if labels.count(row.label) == 1
        else f"{row.label} k {row.k_text} seed {one.candidate.seed}"
        for row, one in steered
    ]
    results = [one.results["steering"] for _, one in steered]

    def values(what: str) -> list[float]:
        key = metric_name(quantity, what, config.steering_strength)
        random = metric_name(quantity, f"random_{what}", config.steering_strength)
        asked = [*((result, key) for result in results), (results[0], random)]
        return [_defined(result, name) for result, name in asked]

    names = [*names, "random directions"]
    median = values("q50")
    stated = "; ".join(f"{name} {value:.3g}" for name, value in zip(names, median, strict=True))
    series = [
        Series(
            name="median, with 5 % and 95 % quantiles",
            x=[*names],
            y=[*median],
            mark="dots",
            low=[*values("q05")],
            high=[*values("q95")],
        )
    ]
    for style, (name, what) in enumerate(
        {"25 % quantile": "q25", "75 % quantile": "q75", "mean": "mean"}.items(), start=1
    ):
        series.append(Series(name=name, x=[*names], y=[*values(what)], mark="dots", style=style))
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


def _defined(result: EvaluationResult, name: str) -> float:
    value = result.value(name)
    if value is None:
        raise ArtifactError(
            f"the steering result of {result.dictionary_name} leaves {name} undefined: it was "
            "edited; evaluate again with --overwrite"
        )
    return float(value)


def costs(rows: Sequence[Row], name: str, columns: Mapping[str, Definition]) -> Chart | None:
    """What training costs, a bar per method and target L0; None where no run says."""
    known = [row for row in rows if row.values[name].mean is not None]
    if not known:
        return None
    title, axis = COSTS[name]
    series = [
        _across(f"k {k}", [(row.label, row.values[name]) for row in known if row.k_text == k])
        for k in dict.fromkeys(row.k_text for row in known)
    ]
    stated = "; ".join(f"{r.label} k {r.k_text} {r.values[name].mean:.3g}" for r in known)
    return Chart(
        name=name,
        title=title,
        caption=f"{columns[name].text} Mean over seeds. {ERROR_BARS}",
        x=Axis(title=axis, low=0.0),
        y=Axis(title="method"),
        series=tuple(series),
        summary=f"Bars of {axis}: {stated}.",
        height=_height(series),
    )


def _across(
    name: str, bars: Sequence[tuple[str, Spread]], labels: list[str] | None = None
) -> Series:
    """Horizontal bars with a name each."""
    return Series(
        name=name,
        x=[spread.mean for _, spread in bars],
        y=[bar for bar, _ in bars],
        mark="bars",
        axis="x",
        labels=labels,
        **_ends(spread for _, spread in bars),
    )


def _ends(spreads: Iterable[Spread]) -> dict[str, Any]:
    """Ends of error bars one standard deviation long; none where no spread has one."""
    known = [(spread.mean or 0.0, spread.sd) for spread in spreads]
    if all(sd is None for _, sd in known):
        return {}
    return {
        "low": [None if sd is None else mean - sd for mean, sd in known],
        "high": [None if sd is None else mean + sd for mean, sd in known],
    }


def _height(series: Sequence[Series]) -> int:
    n_bars = len(list(chain.from_iterable(part.y for part in series)))
    return max(340, 110 + ROW_PIXELS * n_bars)


def _at_half(x: Sequence[float], share: Sequence[float]) -> float:
    """The largest x that half of the latents reach."""
    return max((a for a, b in zip(x, share, strict=True) if b >= 0.5), default=0.0)
