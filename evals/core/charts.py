"""The charts and the tables of a "core" result, from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.formats.evaluation_result import Table
from saelab.stats.metric_definitions import MODES_GROUP

MODE_LABELS = {
    "plain": "plain top-k (default)",
    "threshold": "threshold",
    "gradient_assisted": "gradient-assisted (uses labels)",
    "gradient_shuffled": "control: gradients shuffled across rows",
}
WARNING = (
    "The gradient-assisted mode reads the true next tokens through the gradient of the loss: it is "
    "no measure of a dictionary one could use without labels. Its control takes the gradients of "
    "other rows; a gain over plain top-k that the control lacks comes from the labels."
)
MODE_COLUMNS = {
    "l0_mean": "L0",
    "fvu": "FVU",
    "loss_spliced": "loss, spliced (nats per token)",
    "loss_recovered_zero": "loss recovered (zero)",
    "loss_recovered_mean": "loss recovered (mean)",
    "kl": "KL (nats per token)",
}
DENSITY = Axis(title="density (fraction of rows, log)", log=True)


def core_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Every chart of a core result.

    Args:
        data: by chart name, what it shows.
    """
    drawn = {
        "losses": losses,
        "density_histogram": density_histogram,
        "l0_histogram": l0_histogram,
        "fvu_by_position": fvu_by_position,
        "error_by_norm": error_by_norm,
        "density_and_strength": density_and_strength,
        "inference_modes": inference_modes,
    }
    return [draw(data[name]) for name, draw in drawn.items() if name in data]


def losses(data: Mapping[str, Any]) -> Chart:
    """Cross-entropy of the model under the four conditions."""
    names = {
        "clean": "clean",
        "spliced": "reconstruction spliced in",
        "mean_ablation": "mean ablation",
        "zero_ablation": "zero ablation",
    }
    values = [data["loss"][condition] for condition in names]
    bars = Series(
        name="nats per token",
        x=[*names.values()],
        y=values,
        mark="bars",
        text=[f"{value:.3f}" for value in values],
    )
    return Chart(
        name="losses",
        title="What the reconstruction costs the model",
        caption=f"Next-token cross-entropy, mean over {data['n_positions']:,} predicted "
        "positions, with the activation untouched, replaced by its reconstruction, by "
        f"{data['mean_source']}, and by zero. Excluded rows stay untouched in every condition.",
        x=Axis(title="condition"),
        y=Axis(title="cross-entropy (nats per token)"),
        series=(bars,),
    )


def density_histogram(data: Mapping[str, Any]) -> Chart:
    """Latents by how often they are active."""
    edges = [10.0**exponent for exponent in data["log10_edges"]]
    latents, never = data["latents"], data["never_active"]
    n_latents = sum(latents) + never
    fullest = max(range(len(latents)), key=lambda index: latents[index])
    return Chart(
        name="density_histogram",
        title="How often latents are active",
        caption=f"Histogram of feature density, the fraction of the {data['n_rows']:,} evaluated "
        "rows on which a latent's code is positive, in bins equal in log10. "
        f"{never:,} of {n_latents:,} latents were never active and are not drawn.",
        summary=f"Histogram of feature density over {n_latents:,} latents: {never:,} never active; "
        f"the fullest bin, from {edges[fullest]:.2g} to {edges[fullest + 1]:.2g}, holds "
        f"{latents[fullest]:,}.",
        x=DENSITY,
        y=Axis(title="latents"),
        series=(Series(name="latents", x=[*edges], y=latents, mark="histogram"),),
    )


def l0_histogram(data: Mapping[str, Any]) -> Chart:
    """Rows by how many latents are active on them."""
    lows, highs, rows = data["l0_from"], data["l0_to"], data["rows"]
    # Bars of whole numbers end half-way between them; at least 20 wide, so that the one bar of a
    # fixed k is a bar.
    edges = [lows[0] - 0.5, *(high + 0.5 for high in highs)]
    middle, reach = (lows[0] + highs[-1]) / 2, max(0.6 * (highs[-1] - lows[0]), 10)
    stated = f"mean {data['mean']:.4g}, median {data['median']:,}"
    return Chart(
        name="l0_histogram",
        title="Active latents per row",
        caption=f"Histogram of L0, the number of positive codes of a row, over the {sum(rows):,} "
        f"evaluated rows: {stated}.",
        summary=f"Histogram of L0 over {sum(rows):,} rows: {stated}, from {lows[0]:,} to "
        f"{highs[-1]:,}.",
        x=Axis(
            title="L0: active latents per row", low=max(middle - reach, -0.6), high=middle + reach
        ),
        y=Axis(title="rows (tokens)", low=0),
        series=(Series(name="rows", x=edges, y=rows, mark="histogram"),),
    )


def fvu_by_position(data: Mapping[str, Any]) -> Chart:
    """FVU along the context."""
    spans = list(zip(data["position_from"], data["position_to"], strict=True))
    known = [value for value in data["fvu"] if value is not None]
    pooled = data["pooled"]
    curve = Series(
        name="FVU",
        x=[(low + high) / 2 for low, high in spans],
        y=data["fvu"],
        mark="lines+dots",
        labels=[f"positions {low} to {high}" for low, high in spans],
    )
    return Chart(
        name="fvu_by_position",
        title="Error along the context",
        caption="FVU of the rows at each position: sum of |x - reconstruction|^2 over sum of "
        f"|x - mean|^2, with the same mean as the pooled FVU (dashed, {pooled:.3g}). Position 0 "
        "is the first token; positions without an evaluated row are left out.",
        summary=f"Line of FVU against position: from {min(known):.3g} to {max(known):.3g}, pooled "
        f"{pooled:.3g}.",
        x=Axis(title="position in the context (tokens)"),
        y=Axis(title="FVU", low=0),
        series=(curve,),
        lines=(ReferenceLine(value=pooled, label="pooled"),),
    )


def error_by_norm(data: Mapping[str, Any]) -> Chart:
    """How the error grows with the norm of the activation."""
    spans = list(zip(data["norm_low"], data["norm_high"], strict=True))
    centres = [(low * high) ** 0.5 for low, high in spans]
    errors, rows = data["mean_error_norm"], data["rows"]
    fullest = max(range(len(rows)), key=lambda index: rows[index])
    labels = [
        f"norm {low:.4g} to {high:.4g}, {count:,} rows"
        for (low, high), count in zip(spans, rows, strict=True)
    ]
    curve = Series(
        name="error", x=[*centres], y=errors, mark="lines+dots", labels=labels, weights=rows
    )
    return Chart(
        name="error_by_norm",
        title="Error against the size of the activation",
        caption="Mean norm of the error x - reconstruction (in activation units) of the rows in "
        "bins of |x| equal in log10; larger markers stand for more rows.",
        summary=f"Curve of the mean error norm against the activation norm, from {errors[0]:.3g} "
        f"at norm {centres[0]:.3g} to {errors[-1]:.3g} at norm {centres[-1]:.3g}; most rows "
        f"({rows[fullest]:,}) near norm {centres[fullest]:.3g}, where it is {errors[fullest]:.3g}.",
        x=Axis(title="|x|: norm of the activation (activation units, log)", log=True),
        y=Axis(title="mean |x - reconstruction|", low=0),
        series=(curve,),
    )


def density_and_strength(data: Mapping[str, Any]) -> Chart:
    """Each latent by how often and how strongly it is active."""
    shown, alive = len(data["latent"]), data["n_alive"]
    which = "all" if shown == alive else f"{shown:,} evenly chosen"
    middle = sorted(data["mean_activation"])[shown // 2] if shown else 0.0
    points = Series(
        name="latents",
        x=data["density"],
        y=data["mean_activation"],
        mark="dots",
        labels=[f"latent {latent}" for latent in data["latent"]],
    )
    return Chart(
        name="density_and_strength",
        title="How often against how strongly",
        caption=f"One point per latent ({which} of the {alive:,} that were active at all): "
        "density is the fraction of evaluated rows on which its code is positive, height the mean "
        "of its positive codes (in units of the saved dictionary).",
        summary=f"Scatter of {shown:,} latents: density against mean code when active; the median "
        f"of the mean code is {middle:.3g}.",
        x=DENSITY,
        y=Axis(title="mean code when active (log)", log=True),
        series=(points,),
    )


def inference_modes(data: Mapping[str, Any]) -> Chart:
    """FVU and loss recovered of each mode that a `gradient_topk` dictionary has."""
    labels = [MODE_LABELS[mode] for mode in data["mode"]]
    shown = ("fvu", "loss_recovered_zero", "loss_recovered_mean")
    series = [
        Series(
            name=MODE_COLUMNS[name],
            x=[*labels],
            y=data[name],
            mark="bars",
            text=["" if value is None else f"{value:.3f}" for value in data[name]],
        )
        for name in shown
    ]
    stated = "; ".join(
        f"{label}: L0 {data['l0_mean'][index]:.3g}, "
        + ", ".join(f"{MODE_COLUMNS[name]} {_number(data[name][index])}" for name in shown)
        for index, label in enumerate(labels)
    )
    return Chart(
        name="inference_modes",
        title="FVU and loss recovered in each mode",
        caption=f"FVU over {data['n_rows']:,} evaluated rows (lower is better) and loss recovered "
        f"over {data['n_positions']:,} predicted positions (higher is better): how much of what "
        f"zero ablation, and ablation to {data['mean_source']}, costs the model is undone. "
        f"{WARNING}",
        summary=f"Grouped bars by mode: {stated}. The gradient-assisted mode uses labels.",
        x=Axis(title="mode"),
        y=Axis(title="ratio"),
        series=tuple(series),
        height=400,
        section=MODES_GROUP,
    )


def core_tables(data: Mapping[str, Any]) -> Sequence[Table]:
    """Errors by hook point where several are written; the modes of what has several."""
    tables = []
    if "by_hook_point" in data:
        of_each = data["by_hook_point"]
        columns = tuple(of_each)
        tables.append(
            Table(
                title="By hook point: FVU about its own mean"
                + (", and mean L0 of its own latents" if "L0" in columns else ""),
                columns=columns,
                rows=tuple(zip(*of_each.values(), strict=True)),
            )
        )
    if "inference_modes" not in data:
        return tables
    modes = data["inference_modes"]
    rows = [
        (MODE_LABELS[mode], *(modes[name][index] for name in MODE_COLUMNS))
        for index, mode in enumerate(modes["mode"])
    ]
    tables.append(
        Table(
            title="The modes side by side; definitions are at the end",
            columns=("mode", *MODE_COLUMNS.values()),
            rows=tuple(rows),
            section=MODES_GROUP,
            note="Everything above is the plain top-k mode. This section runs the same dictionary "
            f"in its other modes, on the tokens on which losses are measured. {WARNING}",
        )
    )
    return tables


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
