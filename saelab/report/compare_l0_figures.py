"""The figures of a comparison that hold methods against L0, each a function of its data alone."""

from __future__ import annotations

from typing import Any

from .compare_parts import (
    L0_COLOURS,
    SPREAD,
    error_bars,
    legend_below,
    padded,
    reach,
    width_suffix,
)
from .figure import Figure, log_axis, new_plot
from .line_styles import MARKERS, line_style, name_lines, short_name

AXES = {
    "fvu": ("FVU (share of variance)", "FVU", "lower is better"),
    "loss_recovered_mean": (
        "loss recovered (against mean ablation)",
        "Loss recovered",
        "higher is better",
    ),
}
ROW_PIXELS = 17
L0_TICKS = (1, 1.5, 2, 3, 4, 5, 6, 8)


def pareto(data: dict[str, Any]) -> Figure:
    """A number against measured L0, a line per method."""
    metric, names = data["metric"], data["names"]
    axis, title, better = AXES[metric]
    lines = data["lines"]
    every_l0 = [l0 for line in lines for l0 in line["l0"]]
    x_axis = log_axis(every_l0)
    x_axis["range"][1] += 0.05 * (x_axis["range"][1] - x_axis["range"][0])
    if x_axis["range"][1] - x_axis["range"][0] < 2:
        ticks = [step * 10.0**decade for decade in range(-1, 5) for step in L0_TICKS]
        x_axis |= {"tickvals": ticks, "ticktext": [f"{tick:.4g}" for tick in ticks]}
    low, high = padded(reach(lines, "value", "value_sd"))
    plot = new_plot(
        "measured L0: active latents per token (log)", axis, x_axis=x_axis, range=[low, high]
    )
    plot.update_layout(height=460)
    for line in lines:
        style = line_style(line["name"], names)
        plot.add_scatter(
            x=line["l0"],
            y=line["value"],
            mode="lines+markers",
            line=style.line(),
            marker=style.points(),
            error_x=error_bars(line["l0_sd"], style.colour),
            error_y=error_bars(line["value_sd"], style.colour),
            customdata=list(zip(line["k"], line["seeds"], strict=True)),
            hovertemplate=f"{line['name']}, k %{{customdata[0]}}<br>L0 %{{x:.4g}}<br>"
            f"{title} %{{y:.4f}}<br>%{{customdata[1]}} seeds<extra></extra>",
        )
    ends = [(line["name"], line["l0"][-1], line["value"][-1]) for line in lines]
    name_lines(plot, ends, names, edge=10 ** x_axis["range"][1], y_range=(low, high))
    stated = "; ".join(
        f"{line['name']} {line['value'][0]:.4g} at L0 {line['l0'][0]:.3g} to "
        f"{line['value'][-1]:.4g} at {line['l0'][-1]:.3g}"
        for line in lines
    )
    return Figure(
        name=f"pareto_{metric}",
        title=f"{title} against L0 ({better}){width_suffix(data)}",
        plot=plot,
        caption=f"{data['definition']} One point per method and target L0, the mean over seeds; "
        f"horizontal and vertical {SPREAD}. Gradient-free inference for every method.",
        alt=f"Lines of {title} against measured L0: {stated}.",
        data=_table(lines, {"target L0": "k", "seeds": "seeds", "L0": "l0", "L0 sd": "l0_sd"})
        | {
            title: [value for line in lines for value in line["value"]],
            f"{title} sd": [value for line in lines for value in line["value_sd"]],
        },
        wide=True,
    )


def differences(data: dict[str, Any]) -> Figure:
    """How far each method is from the reference at the same L0."""
    _, title, better = AXES[data["metric"]]
    rows, levels, reference = data["rows"], data["l0"], data["reference"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    low, high = padded(reach(rows, "difference", "difference_sd", also=[0.0]))
    plot = new_plot(
        f"{title}, difference to {reference} at the same L0",
        "",
        x_axis={"range": [low, high]},
        autorange="reversed",
        tickvals=list(range(len(names))),
        ticktext=[short_name(name) for name in names],
    )
    step = 0.7 / max(1, len(levels))
    for place, level in enumerate(levels):
        at = [row for row in rows if row["l0"] == level and row["difference"] is not None]
        colour = L0_COLOURS[place % len(L0_COLOURS)]
        plot.add_scatter(
            x=[row["difference"] for row in at],
            y=[names.index(row["name"]) + (place - (len(levels) - 1) / 2) * step for row in at],
            name=f"L0 {level:g}",
            mode="markers",
            marker={"color": colour, "symbol": MARKERS[place % len(MARKERS)], "size": 9},
            error_x=error_bars([row["difference_sd"] for row in at], colour),
            customdata=[[row["name"], row["pairs"]] for row in at],
            hovertemplate="%{customdata[0]}, L0 "
            f"{level:g}<br>%{{x:+.4g}}<br>%{{customdata[1]}} seeds<extra></extra>",
        )
    plot.add_vline(x=0, line={"width": 1.5, "color": "rgba(128,128,128,0.9)", "dash": "dot"})
    legend_below(plot, 110 + 10 * len(names) * max(2, len(levels)))
    outside = sum(row["difference"] is None for row in rows)
    return Figure(
        name=f"difference_{data['metric']}",
        title=f"{title}: difference to {reference} at the same L0 ({better}){width_suffix(data)}",
        plot=plot,
        caption=f"Value of each method less that of {reference}, both interpolated (linear in log "
        f"L0) between the points of the same seed, mean over seeds; {SPREAD}, of the differences. "
        f"Nothing is extrapolated: {outside} of {len(rows)} pairs of method and L0 are outside the "
        "range of a method's points and not drawn.",
        alt=f"Points of the difference in {title} to {reference}: "
        + "; ".join(
            f"{row['name']} {row['difference']:+.3g} at L0 {row['l0']:g}"
            for row in rows
            if row["difference"] is not None
        )
        + ".",
        data={
            "method": [row["name"] for row in rows],
            "L0": [row["l0"] for row in rows],
            "difference": [row["difference"] for row in rows],
            "sd": [row["difference_sd"] for row in rows],
            "seeds": [row["pairs"] for row in rows],
        },
    )


def dead_and_underused(data: dict[str, Any]) -> Figure:
    """Dead and underused latents, two bars per method and target L0."""
    rows, names = data["rows"], data["names"]
    ticks = [[short_name(row["name"]) for row in rows], [f"k {row['k']}" for row in rows]]
    largest = max([*reach(rows, "dead", "dead_sd"), *reach(rows, "underused", "underused_sd")])
    x_axis = {"range": [0, 1.04 * largest or 1], "tickformat": ".0%" if largest > 0.1 else ".1%"}
    plot = new_plot("share of latents", "", x_axis=x_axis, autorange="reversed")
    colours = [line_style(row["name"], names).colour for row in rows]
    for key, label, pattern in (
        ("dead", "dead", ""),
        ("underused", "underused, dead ones included", "/"),
    ):
        plot.add_bar(
            y=ticks,
            x=[row[key] for row in rows],
            orientation="h",
            name=label,
            marker={
                "color": colours,
                "pattern": {"shape": pattern, "solidity": 0.4},
                "line": {"color": colours, "width": 1},
            },
            error_x=error_bars([row[f"{key}_sd"] for row in rows], "#808791"),
            hovertemplate=f"%{{y}}<br>{label} %{{x:.2%}}<extra></extra>",
        )
    plot.update_layout(barmode="group", bargap=0.2)
    legend_below(plot, 110 + 2 * ROW_PIXELS * len(rows))
    return Figure(
        name="dead_and_underused",
        title=f"Dead and underused latents{width_suffix(data)}",
        plot=plot,
        caption=f"Dead (plain): {data['dead_definition']} Underused (hatched): "
        f"{data['underused_definition']} Mean over seeds; {SPREAD}.",
        alt="Bars of the share of latents that are dead and underused: "
        + "; ".join(
            f"{row['name']} k {row['k']} {row['dead']:.1%} and {row['underused']:.1%}"
            for row in rows
        )
        + ".",
        data={
            "method": [row["name"] for row in rows],
            "target L0": [row["k"] for row in rows],
            "dead": [row["dead"] for row in rows],
            "dead sd": [row["dead_sd"] for row in rows],
            "underused": [row["underused"] for row in rows],
            "underused sd": [row["underused_sd"] for row in rows],
        },
        wide=True,
    )


def costs(data: dict[str, Any]) -> Figure:
    """What training costs, a row per method and a point per target L0."""
    rows, unit = data["rows"], data["unit"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    levels = list(dict.fromkeys(row["k"] for row in rows))
    plot = new_plot(
        f"{data['axis']} ({unit})",
        "",
        x_axis={"rangemode": "tozero"},
        autorange="reversed",
        tickvals=list(range(len(names))),
        ticktext=[short_name(name) for name in names],
    )
    step = 0.6 / max(1, len(levels))
    for place, level in enumerate(levels):
        at = [row for row in rows if row["k"] == level]
        colour = L0_COLOURS[place % len(L0_COLOURS)]
        plot.add_scatter(
            x=[row["value"] for row in at],
            y=[names.index(row["name"]) + (place - (len(levels) - 1) / 2) * step for row in at],
            name=f"k {level}",
            mode="markers",
            marker={"color": colour, "symbol": MARKERS[place % len(MARKERS)], "size": 9},
            error_x=error_bars([row["sd"] for row in at], colour),
            customdata=[row["name"] for row in at],
            hovertemplate=f"%{{customdata}}, k {level}<br>%{{x:.4g}} {unit}<extra></extra>",
        )
    legend_below(plot, 110 + 10 * len(names) * max(2, len(levels)))
    return Figure(
        name=data["name"],
        title=f"{data['title']}{width_suffix(data)}",
        plot=plot,
        caption=f"{data['definition']} Mean over seeds; {SPREAD}.",
        alt=f"Points of {data['axis']} in {unit}: "
        + "; ".join(f"{row['name']} k {row['k']} {row['value']:.3g}" for row in rows)
        + ".",
        data={
            "method": [row["name"] for row in rows],
            "target L0": [row["k"] for row in rows],
            f"{data['axis']} ({unit})": [row["value"] for row in rows],
            "sd": [row["sd"] for row in rows],
        },
    )


def _table(lines: list[dict[str, Any]], columns: dict[str, str]) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {
        "method": [line["name"] for line in lines for _ in line["l0"]],
    }
    for heading, key in columns.items():
        table[heading] = [value for line in lines for value in line[key]]
    return table
