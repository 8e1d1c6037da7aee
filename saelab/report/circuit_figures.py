"""The figures of a circuit search of the suite "supervised": one heat map of heads per role."""

from __future__ import annotations

from typing import Any

from .figure import BLUE, ORANGE, Figure, new_plot


def circuit_heat_maps(circuit: dict[str, Any]) -> list[Figure]:
    """One heat map of heads per role of a circuit search."""
    return [_heat_map(role) for role in circuit["roles"]]


def _heat_map(role: dict[str, Any]) -> Figure:
    effects = role["effects"]
    n_layers, n_heads = len(effects), len(effects[0])
    largest = max(abs(value) for row in effects for value in row) or 1.0
    plot = new_plot("block", "head", x_axis={"dtick": 2}, dtick=1)
    plot.add_heatmap(
        z=[[effects[layer][head] for layer in range(n_layers)] for head in range(n_heads)],
        zmid=0,
        zmin=-largest,
        zmax=largest,
        colorscale=[[0, ORANGE], [0.5, "#8a8f98"], [1, BLUE]],
        colorbar={"title": {"text": "effect"}, "thickness": 12},
        hovertemplate="head %{x}.%{y}<br>effect %{z:.3f}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    plot.add_scatter(
        x=[layer for layer, _ in role["heads"]],
        y=[head for _, head in role["heads"]],
        mode="markers",
        marker={"symbol": "square-open", "size": 13, "color": "#808791", "line": {"width": 2}},
        hoverinfo="skip",
    )
    edited, where = " and ".join(role["edit"]), role["position"]
    flat = [(effects[i][j], i, j) for i in range(n_layers) for j in range(n_heads)]
    top = sorted(flat, key=lambda one: -abs(one[0]))[:5]
    named = ", ".join(f"{i}.{j} ({value:.3f})" for value, i, j in top)
    return Figure(
        name=f"heads_{role['name']}",
        title=f"{role['name']}: heads at {where}, {edited} changed",
        plot=plot,
        caption=f"Share of the clean metric that is lost when a head's output z at {where} is "
        f"replaced by its value on a prompt with other {edited}; negative (orange) where the "
        f"metric rises. Outlined: heads that take the role. {role['n_prompts']} prompts.",
        alt=f"Heat map of {n_layers} blocks by {n_heads} heads; largest effects: {named}.",
        data={
            "block": [i for _, i, _ in sorted(flat, key=lambda one: -abs(one[0]))[:100]],
            "head": [j for _, _, j in sorted(flat, key=lambda one: -abs(one[0]))[:100]],
            "effect": [v for v, _, _ in sorted(flat, key=lambda one: -abs(one[0]))[:100]],
        },
        wide=True,
    )
