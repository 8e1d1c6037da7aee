"""Test 2's trade-off between how much an edit changes and how well it works."""

from __future__ import annotations

from typing import Any

from .figure import Figure, new_plot
from .line_styles import GREY, short_name
from .supervised_parts import LEGEND, colour_of, panels


def tradeoff(data: dict[str, Any]) -> Figure:
    """Test 2: weight removed against accuracy along k, one panel per edit and cross-section."""
    names = data["contenders"]
    plot, axes = panels(
        [panel["title"] for panel in data["panels"]],
        "weight removed",
        "edit accuracy",
        range=[-0.03, 1.05],
    )
    shown: set[str] = set()
    table: dict[str, list[Any]] = {
        key: [] for key in ("panel", "contender", "mode", "k", "weight removed", "edit accuracy")
    }

    def note(panel: str, name: str, mode: str, point: dict[str, Any]) -> None:
        row = (panel, name, mode, point["k"], point["weight"], point["accuracy"])
        for key, value in zip(table, row, strict=True):
            table[key].append(value)

    for (x_name, y_name), panel in zip(axes, data["panels"], strict=True):
        where = {"xaxis": x_name, "yaxis": y_name}
        for line in panel["lines"]:
            name, mode = line["series"], line["mode"]
            colour, points = colour_of(name, names), sorted(line["points"], key=lambda p: p["k"])
            label = f"{short_name(name)}, {mode}"
            plot.add_scatter(
                x=[point["weight"] for point in points],
                y=[point["accuracy"] for point in points],
                mode="lines+markers",
                name=label,
                legendgroup=label,
                showlegend=label not in shown,
                line={"color": colour, "width": 2, "dash": "dash" if mode == "aware" else "solid"},
                marker={
                    "size": 6,
                    "color": colour,
                    "symbol": "circle" if mode != "aware" else "square-open",
                },
                customdata=[point["k"] for point in points],
                hovertemplate=f"{name}, {mode}, k = %{{customdata}}<br>weight %{{x:.3f}}, accuracy "
                "%{y:.3f}<extra></extra>",
                **where,
            )
            shown.add(label)
            for point in points:
                note(panel["title"], name, mode, point)
        for point in panel["points"]:
            name = point["series"]
            plot.add_scatter(
                x=[point["weight"]],
                y=[point["accuracy"]],
                mode="markers",
                name=short_name(name),
                legendgroup=name,
                showlegend=name not in shown,
                marker={
                    "symbol": "star" if name == data["ceiling"] else "diamond-open",
                    "size": 13 if name == data["ceiling"] else 9,
                    "color": colour_of(name, names),
                },
                hovertemplate=f"{name}<br>weight %{{x:.3f}}, accuracy %{{y:.3f}}<extra></extra>",
                **where,
            )
            shown.add(name)
            note(panel["title"], name, "supervised", point)
        if panel["none"] is not None:
            plot.add_shape(
                type="line",
                x0=0,
                x1=1,
                xref=f"{x_name} domain",
                yref=y_name,
                y0=panel["none"],
                y1=panel["none"],
                line={"color": GREY, "width": 1, "dash": "dot"},
            )
    return Figure(
        name="tradeoff",
        title="Test 2: how much must be changed for how much control",
        plot=plot,
        caption="Along each line the number of changed latents k grows. Weight removed is the "
        "signed share of the reconstruction that the changed latents held (1: all of it). Solid: "
        "greedy edits; dashed: latents chosen by F1. Star: the supervised edit; diamonds: other "
        "supervised and random dictionaries. Dotted: no intervention.",
        alt=f"{len(data['panels'])} panels of edit accuracy against weight removed; "
        + "; ".join(
            f"{panel['title']}: "
            + ", ".join(f"{p['series']} {p['accuracy']:.2f}" for p in panel["points"])
            for panel in data["panels"]
        )
        + ".",
        data=table,
        wide=True,
    )


def tradeoff_normalised(data: dict[str, Any]) -> Figure:
    """Test 2 relative to the supervised edit, averaged over cross-sections and edits."""
    names = data["contenders"]
    plot = new_plot("(w − w_sup) / (1 − w_sup)", "(a − a_none) / (a_sup − a_none)")
    plot.update_layout(showlegend=True, legend=LEGEND, height=420, margin={"t": 80})
    table: dict[str, list[Any]] = {
        key: [] for key in ("contender", "mode", "k", "relative weight", "relative accuracy")
    }
    ends = []
    for line in data["lines"]:
        name, mode, points = line["series"], line["mode"], line["points"]
        colour = colour_of(name, names)
        plot.add_scatter(
            x=[point["weight"] for point in points],
            y=[point["accuracy"] for point in points],
            mode="lines+markers+text",
            text=[str(point["k"]) for point in points],
            textposition="top center",
            textfont={"size": 10},
            name=f"{short_name(name)}, {mode}",
            line={"color": colour, "width": 2, "dash": "dash" if mode == "aware" else "solid"},
            marker={"size": 7, "color": colour},
            hovertemplate=f"{name}, {mode}, k = %{{text}}<br>%{{x:.3f}}, %{{y:.3f}}<extra></extra>",
        )
        for point in points:
            row = (name, mode, point["k"], point["weight"], point["accuracy"])
            for key, value in zip(table, row, strict=True):
                table[key].append(value)
        ends.append(f"{name} {mode} {points[0]['accuracy']:.2f} at k = {points[0]['k']}")
    plot.add_scatter(
        x=[0],
        y=[1],
        mode="markers",
        name="supervised edit",
        marker={"symbol": "star", "size": 14, "color": GREY},
        hovertemplate="supervised edit<extra></extra>",
    )
    return Figure(
        name="tradeoff_normalised",
        title="Test 2 relative to the supervised edit",
        plot=plot,
        caption="Means over the cross-sections and edits where the supervised edit gains at least "
        "0.1 over no intervention; numbers are k. The star at (0, 1) is the supervised edit: it "
        "removes w_sup of the weight and reaches accuracy a_sup. (1, 0) would remove everything "
        "and change nothing.",
        alt="Lines of relative accuracy against relative weight: " + "; ".join(ends) + ".",
        data=table,
    )
