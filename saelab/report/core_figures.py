"""The figures of the suite "core", each a pure function from the data in its result file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .figure import BLUE, GREEN, ORANGE, PURPLE, Figure, log_axis, new_plot


def density_histogram(data: dict[str, Any]) -> Figure:
    """Latents by how often they are active."""
    edges, latents, never = data["log10_edges"], data["latents"], data["never_active"]
    n_rows, d_sae = data["n_rows"], sum(latents) + never
    plot = new_plot(
        "density (fraction of rows, log)",
        "latents",
        x_axis=_powers_of_ten(int(edges[0]), 0),
    )
    lows, highs = edges[:-1], edges[1:]
    plot.add_bar(
        x=[(low + high) / 2 for low, high in zip(lows, highs, strict=True)],
        y=latents,
        width=[high - low for low, high in zip(lows, highs, strict=True)],
        marker_color=BLUE,
        customdata=[[10**low, 10**high] for low, high in zip(lows, highs, strict=True)],
        hovertemplate="%{y:,} latents with density<br>%{customdata[0]:.2g} to %{customdata[1]:.2g}"
        "<extra></extra>",
    )
    fullest = max(range(len(latents)), key=lambda place: latents[place])
    return Figure(
        name="density_histogram",
        title="How often latents are active",
        plot=plot,
        caption=f"Histogram of feature density, the fraction of the {n_rows:,} evaluated rows on "
        "which a "
        f"latent's code is positive, in bins equal in log10. {never:,} of {d_sae:,} latents were "
        "never "
        "active and are not drawn.",
        alt=f"Histogram of feature density over {d_sae:,} latents: {never:,} never active; the "
        "fullest "
        f"bin, from {10 ** lows[fullest]:.2g} to {10 ** highs[fullest]:.2g}, holds "
        f"{latents[fullest]:,}.",
        data={
            "density from": [0.0, *(10**low for low in lows)],
            "density to": [0.0, *(10**high for high in highs)],
            "latents": [never, *latents],
        },
    )


def l0_histogram(data: dict[str, Any]) -> Figure:
    """Rows by how many latents are active on them."""
    lows, highs, rows = data["l0_from"], data["l0_to"], data["rows"]
    plot = new_plot("L0: active latents per row", "rows (tokens)", rangemode="tozero")
    centres = [(low + high) / 2 for low, high in zip(lows, highs, strict=True)]
    plot.add_bar(
        x=centres,
        y=rows,
        width=[high - low + 1 for low, high in zip(lows, highs, strict=True)],
        marker_color=BLUE,
        customdata=[[low, high] for low, high in zip(lows, highs, strict=True)],
        hovertemplate="%{y:,} rows with L0<br>%{customdata[0]} to %{customdata[1]}<extra></extra>",
    )
    # At least 20 wide, so that the one bar of a fixed k is a bar and ticks are whole numbers.
    middle, reach = (lows[0] + highs[-1]) / 2, max(0.6 * (highs[-1] - lows[0]), 10)
    plot.update_xaxes(range=[max(middle - reach, -0.6), middle + reach])
    total = sum(rows)
    mean, median = data["mean"], data["median"]
    return Figure(
        name="l0_histogram",
        title="Active latents per row",
        plot=plot,
        caption="Histogram of L0, the number of positive codes of a row, over the "
        f"{total:,} evaluated rows. Mean {mean:.4g}, median {median:,}.",
        alt=f"Histogram of L0 over {total:,} rows: mean {mean:.4g}, median {median:,}, from "
        f"{lows[0]:,} to {highs[-1]:,}.",
        data={"L0 from": lows, "L0 to": highs, "rows": rows},
    )


def losses(data: dict[str, Any]) -> Figure:
    """Cross-entropy of the model under the four conditions."""
    order = {
        "clean": ("clean", GREEN),
        "spliced": ("reconstruction<br>spliced in", BLUE),
        "mean_ablation": ("mean<br>ablation", ORANGE),
        "zero_ablation": ("zero<br>ablation", PURPLE),
    }
    values = [data["loss"][condition] for condition in order]
    names = [label for label, _ in order.values()]
    plot = new_plot("condition", "cross-entropy (nats per token)", range=[0, 1.15 * max(values)])
    plot.add_bar(
        x=names,
        y=values,
        width=0.6,
        marker_color=[colour for _, colour in order.values()],
        text=[f"{value:.3f}" for value in values],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{x}: %{y:.4f} nats<extra></extra>",
    )
    plain = [name.replace("<br>", " ") for name in names]
    stated = ", ".join(f"{name} {value:.3f}" for name, value in zip(plain, values, strict=True))
    return Figure(
        name="losses",
        title="What the reconstruction costs the model",
        plot=plot,
        caption=f"Next-token cross-entropy, mean over {data['n_positions']:,} predicted "
        "positions, with "
        "the activation untouched, replaced by its reconstruction, by "
        f"{data['mean_source']}, and by zero. Excluded rows stay untouched in every condition.",
        alt=f"Bar chart of cross-entropy in nats per token: {stated}.",
        data={"condition": plain, "nats per token": values},
    )


def fvu_by_position(data: dict[str, Any]) -> Figure:
    """FVU along the context."""
    lows, highs, values = data["position_from"], data["position_to"], data["fvu"]
    known = [value for value in values if value is not None]
    plot = new_plot("position in the context (tokens)", "FVU", rangemode="tozero")
    plot.add_scatter(
        x=[(low + high) / 2 for low, high in zip(lows, highs, strict=True)],
        y=values,
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        marker={"size": 5},
        customdata=[[low, high] for low, high in zip(lows, highs, strict=True)],
        hovertemplate="FVU %{y:.4f}<br>positions %{customdata[0]} to "
        "%{customdata[1]}<extra></extra>",
    )
    plot.add_hline(y=data["pooled"], line={"dash": "dash", "width": 1.5, "color": ORANGE})
    return Figure(
        name="fvu_by_position",
        title="Error along the context",
        plot=plot,
        caption="FVU of the rows at each position: sum of |x - reconstruction|^2 over sum of "
        f"|x - mean|^2, with the same mean as the pooled FVU (dashed, {data['pooled']:.3g}). "
        "Position 0 "
        "is the first token; positions without an evaluated row are left out.",
        alt=f"Line of FVU against position: from {min(known):.3g} to {max(known):.3g}, pooled "
        f"{data['pooled']:.3g}.",
        data={"position from": lows, "position to": highs, "FVU": values},
    )


def error_by_norm(data: dict[str, Any]) -> Figure:
    """How the error grows with the norm of the activation."""
    lows, highs = data["norm_low"], data["norm_high"]
    errors, rows = data["mean_error_norm"], data["rows"]
    centres = [(low * high) ** 0.5 for low, high in zip(lows, highs, strict=True)]
    plot = new_plot(
        "|x|: norm of the activation (activation units, log)",
        "mean |x - reconstruction|",
        x_axis=log_axis([lows[0], highs[-1]]),
        rangemode="tozero",
    )
    largest = max(rows)
    plot.add_scatter(
        x=centres,
        y=errors,
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        # Area in proportion to the rows, so that a bin of few rows looks like one.
        marker={
            "size": [4 + 14 * (count / largest) ** 0.5 for count in rows],
            "color": BLUE,
            "opacity": 1,
            "line": {"width": 0},
        },
        customdata=[[low, high, count] for low, high, count in zip(lows, highs, rows, strict=True)],
        hovertemplate="mean error norm %{y:.4g}<br>norm %{customdata[0]:.4g} to "
        "%{customdata[1]:.4g}"
        "<br>%{customdata[2]:,} rows<extra></extra>",
    )
    fullest = max(range(len(rows)), key=lambda place: rows[place])
    return Figure(
        name="error_by_norm",
        title="Error against the size of the activation",
        plot=plot,
        caption="Mean norm of the error x - reconstruction (in activation units) of the rows in "
        "bins of "
        "|x| equal in log10; larger markers stand for more rows.",
        alt=f"Curve of the mean error norm against the activation norm, from {errors[0]:.3g} at "
        "norm "
        f"{centres[0]:.3g} to {errors[-1]:.3g} at norm {centres[-1]:.3g}; most rows "
        f"({rows[fullest]:,}) near norm {centres[fullest]:.3g}, where it is {errors[fullest]:.3g}.",
        data={"norm from": lows, "norm to": highs, "mean error norm": errors, "rows": rows},
    )


def density_and_strength(data: dict[str, Any]) -> Figure:
    """Each latent by how often and how strongly it is active."""
    density, strength, latent = data["density"], data["mean_activation"], data["latent"]
    plot = new_plot(
        "density (fraction of rows, log)",
        "mean code when active (log)",
        x_axis=log_axis(density),
        **log_axis(strength),
    )
    plot.add_scatter(
        x=density,
        y=strength,
        mode="markers",
        marker={"size": 4, "opacity": 0.6, "color": BLUE, "line": {"width": 0}},
        customdata=latent,
        hovertemplate="latent %{customdata}<br>density %{x:.3g}<br>mean code "
        "%{y:.4g}<extra></extra>",
    )
    shown, alive = len(latent), data["n_alive"]
    which = "all" if shown == alive else f"{shown:,} evenly chosen"
    middle = sorted(strength)[shown // 2] if shown else 0.0
    return Figure(
        name="density_and_strength",
        title="How often against how strongly",
        plot=plot,
        caption=f"One point per latent ({which} of the {alive:,} that were active at all): "
        "density is "
        "the fraction of evaluated rows on which its code is positive, height the mean of its "
        "positive "
        "codes (in units of the saved dictionary).",
        alt=f"Scatter of {shown:,} latents: density against mean code when active; the median of "
        "the "
        f"mean code is {middle:.3g}.",
        data={"latent": latent, "density": density, "mean code when active": strength},
    )


CORE_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "losses": losses,
    "density_histogram": density_histogram,
    "l0_histogram": l0_histogram,
    "fvu_by_position": fvu_by_position,
    "error_by_norm": error_by_norm,
    "density_and_strength": density_and_strength,
}


def _powers_of_ten(lowest: int, highest: int) -> dict[str, Any]:
    exponents = list(range(lowest, highest + 1))
    return {
        "tickvals": exponents,
        "ticktext": [
            "1" if exponent == 0 else f"10<sup>{exponent}</sup>" for exponent in exponents
        ],
        "range": [lowest - 0.1, highest + 0.1],
    }
