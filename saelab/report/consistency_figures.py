"""The figures of the suite "consistency", each a pure function from the data in its result file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .figure import BLUE, GREEN, ORANGE, PURPLE, Figure, log_axis, new_plot

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
DASHES = ("solid", "dash", "dot", "dashdot")
RANKINGS = {
    "max_activation": ("max activation", "max activation (activation units, log)"),
    "z_score": ("Z-score", "Z-score: (max − mean) / std of the pre-activation (log)"),
    "density": ("density", "density (fraction of rows, log)"),
}


def share_by_rank(data: dict[str, Any]) -> Figure:
    """Share of latents found again, among the top of each ranking."""
    fractions, threshold = data["fraction"], data["threshold"]
    plot = _share_plot("top fraction of the alive latents (log)", fractions)
    table: dict[str, list[Any]] = {"top fraction": fractions}
    stated = []
    for colour, (ranking, kinds) in zip(COLOURS, data["curves"].items(), strict=False):
        name = RANKINGS[ranking][0]
        for kind, dash in (("mcs", "solid"), ("one_to_one", "dot")):
            label = f"{name}, one to one" if kind == "one_to_one" else name
            # The legend names each colour once; the caption tells solid from dotted.
            _line(plot, fractions, kinds[kind], label, colour, dash, named=kind == "mcs")
            table[label] = kinds[kind]
        stated.append(f"{name} {kinds['mcs'][0]:.2f} to {kinds['mcs'][-1]:.2f}")
    return Figure(
        name="share_by_rank",
        title="Are the most active latents found again?",
        plot=plot,
        caption=f"Among the top fraction of the alive latents by each ranking: the share with a "
        f"cosine above {threshold:g} to a latent of the other runs (largest cosine, averaged over "
        "them; solid), and to the one-to-one partner there (dotted). Mean over "
        f"{data['n_runs']} runs of {_range(data['n_compared'])} alive latents.",
        alt=f"Curves of the share of latents with MCS above {threshold:g} against the top "
        f"fraction, from the smallest to all: {'; '.join(stated)}.",
        data=table,
    )


def mcs_distribution(data: dict[str, Any]) -> Figure:
    """How many latents have at least a given cosine."""
    cosines, threshold = data["cosine"], data["threshold"]
    lines = {
        "MCS": (data["mcs"], BLUE, "solid"),
        "one to one": (data["one_to_one"], ORANGE, "dot"),
        "random directions": (data["random"], GREEN, "dash"),
    }
    plot = _share_plot("cosine", None)
    for label, (shares, colour, dash) in lines.items():
        _line(plot, cosines, shares, label, colour, dash)
    plot.add_vline(x=threshold, line={"dash": "dash", "width": 1.5, "color": PURPLE})
    half = {label: _at_half(cosines, shares) for label, (shares, _, _) in lines.items()}
    return Figure(
        name="mcs_distribution",
        title="How like their counterparts latents are",
        plot=plot,
        caption="Share of the compared latents with at least this cosine: MCS (largest cosine with "
        "a latent of another run, averaged over the others), the cosine with the one-to-one "
        "partner, and the MCS of random unit directions against the same runs. Mean over "
        f"{data['n_runs']} runs; the vertical line is the threshold, {threshold:g}.",
        alt="Falling curves of the share of latents against cosine; half of them reach "
        + ", ".join(f"{value:.2f} ({label})" for label, value in half.items())
        + ".",
        data={"cosine": cosines, **{label: line[0] for label, line in lines.items()}},
    )


def scatter(data: dict[str, Any], *, ranking: str) -> Figure:
    """Each latent by its rank and its MCS."""
    name, axis = RANKINGS[ranking]
    x, mcs = data["x"], data["mcs"]
    plot = new_plot(axis, "MCS (cosine)", x_axis=log_axis(x), range=[min([0.0, *mcs]), 1.02])
    plot.add_scatter(
        x=x,
        y=mcs,
        mode="markers",
        marker={"size": 4, "opacity": 0.6, "color": BLUE, "line": {"width": 0}},
        customdata=list(zip(data["latent"], data["run"], strict=True)),
        hovertemplate="latent %{customdata[0]} of %{customdata[1]}<br>"
        + name
        + " %{x:.4g}<br>MCS %{y:.3f}<extra></extra>",
    )
    shown, compared = len(x), data["n_compared"]
    which = "all" if shown == compared else f"{shown:,} evenly chosen"
    ordered = [value for _, value in sorted(zip(x, mcs, strict=True))]
    quarter = max(1, shown // 4)
    low, high = _mean(ordered[:quarter]), _mean(ordered[-quarter:])
    return Figure(
        name=f"mcs_by_{ranking}",
        title=f"Consistency against {name}",
        plot=plot,
        caption=f"One point per latent ({which} of the {compared:,} compared latents of all runs): "
        f"{name} on the held-out rows, and MCS, the largest cosine with a latent of another run "
        "averaged over the other runs.",
        alt=f"Scatter of {shown:,} latents: mean MCS {low:.2f} in the lowest quarter by {name}, "
        f"{high:.2f} in the highest.",
        data={"run": data["run"], "latent": data["latent"], name: x, "MCS": mcs},
    )


def share_across(data: dict[str, Any]) -> Figure:
    """Share of a group's latents found by each group, among the most active."""
    fractions, threshold = data["fraction"], data["threshold"]
    plot = _share_plot("top fraction of the alive latents by max activation (log)", fractions)
    for place, (other, shares) in enumerate(data["curves"].items()):
        _line(plot, fractions, shares, other, *_style(place))
    stated = "; ".join(f"{other}: {shares[-1]:.2f}" for other, shares in data["curves"].items())
    return Figure(
        name="share_across",
        title="Found again by whom, among the most active?",
        plot=plot,
        caption=f"Latents of {data['group']}, the top fraction of the alive ones by max "
        f"activation: share whose largest cosine with a latent of the named dictionaries (averaged "
        f"over those) is above {threshold:g}.",
        alt=f"Curves of the share of latents found again against the top fraction; of all "
        f"latents: {stated}.",
        data={"top fraction": fractions, **data["curves"]},
    )


def distribution_across(data: dict[str, Any]) -> Figure:
    """How like a group's latents are to those of each group."""
    cosines = data["cosine"]
    plot = _share_plot("largest cosine", None)
    for place, (other, shares) in enumerate(data["curves"].items()):
        _line(plot, cosines, shares, other, *_style(place))
    half = "; ".join(
        f"{other}: {_at_half(cosines, shares):.2f}" for other, shares in data["curves"].items()
    )
    return Figure(
        name="distribution_across",
        title="How like the latents of the others",
        plot=plot,
        caption=f"Share of the compared latents of {data['group']} whose largest cosine with a "
        "latent of the named dictionaries, averaged over those, is at least this.",
        alt=f"Falling curves of the share of latents against cosine; half reach, {half}.",
        data={"cosine": cosines, **data["curves"]},
    )


def across(data: dict[str, Any]) -> Figure:
    """Mean MCS between every two groups."""
    groups, cells = data["groups"], data["mcs_mean"]
    numbers = [str(place + 1) for place, _ in enumerate(groups)]
    labels = [f"{number}: {group}" for number, group in zip(numbers, groups, strict=True)]
    plot = new_plot(
        "group that is searched", "group whose latents are sought", autorange="reversed"
    )
    plot.add_heatmap(
        z=cells,
        x=numbers,
        y=labels,
        zmin=0,
        zmax=1,
        # See-through, so that the numbers in the theme's text colour can be read on every cell.
        colorscale=[[0, "rgba(47,129,196,0)"], [1, "rgba(47,129,196,0.65)"]],
        showscale=False,
        text=[["" if value is None else f"{value:.2f}" for value in row] for row in cells],
        texttemplate="%{text}",
        hovertemplate="latents of %{y}<br>in group %{x}: mean MCS %{z:.3f}<extra></extra>",
        xgap=2,
        ygap=2,
    )
    plot.update_xaxes(type="category")
    known = [value for row in cells for value in row if value is not None]
    order = [(row, column) for row, _ in enumerate(groups) for column, _ in enumerate(groups)]
    return Figure(
        name="across",
        title="Groups against one another",
        plot=plot,
        caption="Mean over the row's compared latents, and over pairs of dictionaries, of the "
        "largest cosine with a latent of the column's dictionary. On the diagonal: different runs "
        "of one group; empty where there is only one. Wider dictionaries are easier to be found "
        "in, so the matrix is not symmetric.",
        alt=f"Matrix of mean MCS between {len(groups)} groups, from {min(known):.2f} to "
        f"{max(known):.2f}.",
        data={
            "latents of": [labels[row] for row, _ in order],
            "in": [labels[column] for _, column in order],
            "mean MCS": [cells[row][column] for row, column in order],
            "mean cosine, one to one": [
                data["one_to_one_mean"][row][column] for row, column in order
            ],
            f"share above {data['threshold']:g}": [
                data["mcs_share"][row][column] for row, column in order
            ],
        },
    )


CONSISTENCY_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "share_by_rank": share_by_rank,
    "mcs_distribution": mcs_distribution,
    **{f"mcs_by_{ranking}": partial(scatter, ranking=ranking) for ranking in RANKINGS},
    "across": across,
    "distribution_across": distribution_across,
    "share_across": share_across,
}


def _share_plot(x_title: str, fractions: list[float] | None) -> Any:
    x_axis = {"range": [0, 1]} if fractions is None else log_axis(fractions)
    plot = new_plot(x_title, "share of latents", x_axis=x_axis, range=[-0.02, 1.02])
    plot.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    return plot


def _line(
    plot: Any,
    x: list[float],
    y: list[float],
    label: str,
    colour: str,
    dash: str = "solid",
    *,
    named: bool = True,
) -> None:
    plot.add_scatter(
        x=x,
        y=y,
        name=label,
        showlegend=named,
        mode="lines",
        line={"color": colour, "width": 2, "dash": dash},
        hovertemplate=f"{label}<br>%{{x:.3g}}: %{{y:.3f}}<extra></extra>",
    )


def _style(place: int) -> tuple[str, str]:
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _at_half(cosines: list[float], shares: list[float]) -> float:
    """The largest listed cosine that half of the latents reach."""
    reached = [cosine for cosine, share in zip(cosines, shares, strict=True) if share >= 0.5]
    return max(reached, default=0.0)


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
