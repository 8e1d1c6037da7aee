"""The figures of a comparison about latents, each a function of its data alone."""

from __future__ import annotations

from typing import Any

from plotly.subplots import make_subplots

from .compare_parts import legend_below, width_suffix
from .figure import Figure, log_axis, new_plot
from .line_styles import GREY, line_style, name_lines, short_name

PANELS_PER_ROW = 4
PANEL_PIXELS = 210


def density_by_rank(data: dict[str, Any]) -> Figure:
    """Density against rank with the fitted law, a panel per method."""
    curves, names = data["curves"], data["names"]
    n_columns = min(PANELS_PER_ROW, len(curves))
    n_rows = -(-len(curves) // n_columns)
    plot = make_subplots(
        rows=n_rows,
        cols=n_columns,
        subplot_titles=[short_name(curve["name"]) for curve in curves],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.3 / (n_rows + 1) if n_rows > 1 else 0.1,
    )
    x_axis = log_axis([float(rank) for curve in curves for rank in curve["rank"]])
    y_axis = log_axis([value for curve in curves for value in curve["density"]])
    _in_common_style(plot, x_axis, y_axis)
    plot.update_xaxes(title_text="rank (log)", row=n_rows)
    plot.update_yaxes(title_text="density (log)", col=1)
    plot.update_layout(height=110 + PANEL_PIXELS * n_rows)
    for place, curve in enumerate(curves):
        style = line_style(curve["name"], names)
        where = {"row": place // n_columns + 1, "col": place % n_columns + 1}
        plot.add_scatter(
            x=curve["rank"],
            y=curve["density"],
            mode="lines",
            line={"color": style.colour, "width": 2.5},
            hovertemplate=f"{curve['name']}<br>rank %{{x:,}}<br>density %{{y:.3g}}<extra></extra>",
            **where,
        )
        if curve["law"]:
            plot.add_scatter(
                x=curve["rank"],
                y=curve["law"],
                mode="lines",
                line={"color": GREY, "width": 1.75, "dash": "dash"},
                hovertemplate="Zipf's law<br>rank %{x:,}<br>density %{y:.3g}<extra></extra>",
                **where,
            )
    return Figure(
        name="density_by_rank",
        title=f"Density against rank, with Zipf's law (k {data['k']}){width_suffix(data)}",
        plot=plot,
        caption="Density, the fraction of the evaluated rows on which a latent is active, of the "
        "latents in falling order, mean over seeds at each rank (coloured). Dashed: the law "
        "(rank + q)^-s fitted to it by least squares in log density over ranks 1 % to 70 % of "
        "those that fired. All panels have the same axes; latents that never fired are not drawn.",
        alt="Falling curves of density against rank, one panel per method: "
        + "; ".join(
            f"{curve['name']} from {curve['density'][0]:.2g} to {curve['density'][-1]:.2g} at rank "
            f"{curve['rank'][-1]:,}"
            for curve in curves
            if curve["density"]
        )
        + ".",
        data=_long(curves, {"rank": "rank", "density": "density"}),
        wide=True,
    )


def consistency_curves(data: dict[str, Any]) -> Figure:
    """Share of latents found again, among the most active or by cosine."""
    curves, names, by_rank = data["curves"], data["names"], data["by"] == "rank"
    x_axis = log_axis([x for c in curves for x in c["x"]]) if by_rank else {"range": [0, 1.0]}
    x_title = (
        "top fraction by max activation (log)"
        if by_rank
        else "cosine with the nearest latent of the other seeds (MCS)"
    )
    plot = new_plot(x_title, "share of latents", x_axis=x_axis, range=[-0.02, 1.02])
    plot.update_layout(height=460)
    for curve in curves:
        style = line_style(curve["name"], names)
        plot.add_scatter(
            x=curve["x"],
            y=curve["share"],
            mode="lines",
            line=style.line(),
            hovertemplate=f"{curve['name']}<br>%{{x:.3g}}: %{{y:.3f}}<extra></extra>",
        )
    if data["random"]:
        random = data["random"]
        plot.add_scatter(
            x=random["x"],
            y=random["share"],
            mode="lines",
            line={"color": GREY, "width": 1.5, "dash": "dot"},
            hovertemplate="random directions<br>%{x:.3g}: %{y:.3f}<extra></extra>",
        )
    if by_rank:
        ends = [(curve["name"], curve["x"][-1], curve["share"][-1]) for curve in curves]
        name_lines(plot, ends, names, edge=10 ** x_axis["range"][1], y_range=(-0.02, 1.02))
    else:
        # All end at nothing, where names would lie on one another.
        _legend_of(plot, curves)
    threshold = data["threshold"]
    meaning = (
        f"Among the top fraction of the alive latents by max activation: share whose MCS is above "
        f"{threshold:g}."
        if by_rank
        else "Share of the alive latents with at least this MCS; grey dots: random directions "
        "against the same dictionaries."
    )
    stated = "; ".join(
        f"{curve['name']} {curve['share'][-1]:.2f} of all"
        if by_rank
        else f"{curve['name']} {_at_half(curve):.2f}"
        for curve in curves
    )
    return Figure(
        name=f"consistency_by_{data['by']}",
        title=(
            "Are the most active latents found by other seeds?"
            if by_rank
            else "How like their counterparts latents are"
        )
        + f" (k {data['k']}){width_suffix(data)}",
        plot=plot,
        caption=f"{meaning} MCS: largest cosine of a latent's decoder row with one of another "
        "seed, mean over the other seeds. Mean over the seeds of each method; the table has the "
        "spread.",
        alt=(
            f"Curves of the share of latents with MCS above {threshold:g}: "
            if by_rank
            else "Falling curves of the share of latents against cosine; half of them reach: "
        )
        + f"{stated}.",
        data=_long(
            [{"name": c["name"], "x": c["x"], "share": c["share"]} for c in curves],
            {"top fraction" if by_rank else "cosine": "x", "share": "share"},
        ),
    )


def steering_distribution(data: dict[str, Any]) -> Figure:
    """Quantiles over latents of one steering quantity, a box per dictionary."""
    boxes, names, quantity = data["boxes"], data["names"], data["quantity"]
    plot = new_plot(f"{quantity} of the effect (logits)", "", autorange="reversed")
    for box in boxes:
        style = None if box["method"] is None else line_style(box["method"], names)
        colour = GREY if style is None else style.colour
        plot.add_box(
            y=[short_name(box["name"])],
            orientation="h",
            q1=[box["q25"]],
            median=[box["q50"]],
            q3=[box["q75"]],
            lowerfence=[box["q05"]],
            upperfence=[box["q95"]],
            mean=[box["mean"]],
            boxmean=True,
            line={"color": colour, "width": 1.75},
            fillcolor="rgba(128,128,128,0.12)",
            width=0.55,
            hoverinfo="x+y",
            name=box["name"],
        )
    plot.update_layout(height=max(340, 110 + 30 * len(boxes)))
    meaning = {
        "size": "Size: largest change of any token's logit, mean over contexts.",
        "consistency": "Consistency: change, in contexts that did not choose them, of the logits "
        "of the tokens that the latent promotes most in others.",
    }[quantity]
    return Figure(
        name=f"steering_{quantity}",
        title=f"Steering: {quantity} of a latent's effect{width_suffix(data)}",
        plot=plot,
        caption=f"{meaning} A latent's unit decoder row times {data['strength']:g} × the mean norm "
        "of the rows is added at the last position of random held-out contexts. Boxes: quartiles "
        "over the steered latents of one dictionary; whiskers: 5 % and 95 % quantiles; dashed: "
        "mean. Grey: random directions of the same length, the floor.",
        alt=f"Boxes of the {quantity} of steering effects in logits, medians: "
        + "; ".join(f"{box['name']} {box['q50']:.3g}" for box in boxes)
        + ".",
        data={
            "dictionary": [box["name"] for box in boxes],
            **{
                heading: [box[heading] for box in boxes]
                for heading in ("q05", "q25", "q50", "q75", "q95", "mean")
            },
        },
    )


def _in_common_style(plot: Any, x_axis: dict[str, Any], y_axis: dict[str, Any]) -> None:
    """The look of `new_plot` on every panel."""
    model = new_plot("", "", x_axis=x_axis, **y_axis).layout.to_plotly_json()
    axes = {axis: model.pop(axis) for axis in ("xaxis", "yaxis")}
    plot.update_layout(model)
    for axis, update in (("xaxis", plot.update_xaxes), ("yaxis", plot.update_yaxes)):
        update({key: value for key, value in axes[axis].items() if key != "title"})
    plot.update_annotations(font={"size": 13})


def _legend_of(plot: Any, curves: list[dict[str, Any]]) -> None:
    """A legend above the plot, with each line as it is drawn."""
    for trace, curve in zip(plot.data, curves, strict=False):
        trace.update(name=short_name(curve["name"]))
    for trace in plot.data[len(curves) :]:
        trace.update(name="random directions")
    legend_below(plot, 460)


def _at_half(curve: dict[str, Any]) -> float:
    """The largest listed x that half of the latents reach."""
    reached = [x for x, share in zip(curve["x"], curve["share"], strict=True) if share >= 0.5]
    return max(reached, default=0.0)


def _long(curves: list[dict[str, Any]], columns: dict[str, str]) -> dict[str, list[Any]]:
    """Curves one below the other."""
    first = next(iter(columns.values()))
    table: dict[str, list[Any]] = {
        "method": [curve["name"] for curve in curves for _ in curve[first]]
    }
    for heading, key in columns.items():
        table[heading] = [value for curve in curves for value in curve[key]]
    return table
