"""The figures of the suite "dark_matter" on a family of dictionaries, from its data alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saelab.errors import ArtifactError

from .dark_matter_figures import LEGEND
from .dark_matter_token_figures import (
    family_recovery,
    family_trace,
    norm_test_violin,
    scaling_gain,
    scaling_matrix,
)
from .figure import BLUE, ORANGE, PURPLE, Figure, log_axis, new_plot
from .line_styles import GREY

CONTOUR_TITLES = {
    "norm_r_squared": "R² of the squared error norm",
    "error_r_squared": "R² of the error vector",
    "fvu_nonlinear": "FVU of the nonlinear error",
}
BANDS = (
    ("nonlinear error", "rgba(196,106,27,0.35)"),
    ("linear error", "rgba(31,148,112,0.35)"),
    ("absent features", "rgba(47,129,196,0.35)"),
)


def breakdown(data: dict[str, Any]) -> Figure:
    """FVU over width, cut into absent features, linear and nonlinear error."""
    widths, fvu, nonlinear = data["width"], data["fvu"], data["fvu_nonlinear"]
    plot = new_plot(
        "width: number of latents (log)",
        "FVU (share of variance)",
        x_axis=_width_axis(widths),
        rangemode="tozero",
    )
    plot.update_layout(height=460, **LEGEND)
    if data["refused"] is None:
        _add_areas(plot, data)
    elif data["curve"] is not None:
        _add_curve(plot, data)
    points = {"FVU": (fvu, BLUE, "circle"), "FVU_nonlinear": (nonlinear, ORANGE, "square")}
    if data["pursuit_fvu_nonlinear"] is not None:
        points["FVU_nonlinear, pursuit codes"] = (
            data["pursuit_fvu_nonlinear"],
            PURPLE,
            "diamond-open",
        )
    for label, (values, colour, symbol) in points.items():
        plot.add_scatter(
            x=widths,
            y=values,
            name=label,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5}},
            customdata=list(zip(data["names"], data["measured_l0"], strict=True)),
            hovertemplate="%{customdata[0]}, L0 %{customdata[1]:.4g}<br>"
            f"{label} %{{y:.4f}}<extra></extra>",
        )
    return Figure(
        name="breakdown",
        title=f"FVU broken down over width, L0 within 20 % of {data['l0']:.4g}",
        plot=plot,
        caption=_breakdown_caption(data),
        alt=f"FVU from {fvu[0]:.4f} at {widths[0]:,} latents to {fvu[-1]:.4f} at {widths[-1]:,}; "
        f"FVU_nonlinear from {nonlinear[0]:.4f} to {nonlinear[-1]:.4f}.",
        data={
            "dictionary": data["names"],
            "width": widths,
            "L0": data["measured_l0"],
            **{label: values for label, (values, _, _) in points.items()},
        },
        wide=True,
    )


def _breakdown_caption(data: dict[str, Any]) -> str:
    text = (
        "Held-out FVU of one dictionary per width, and FVU_nonlinear, what is left after a linear "
        "map of the activation predicts what it can of the error."
    )
    if data["fit"] is None:
        return f"{text} {_sentence(data['refused'])}"
    fit = data["fit"]
    text += (
        f" Fit: FVU = {fit['c']:.4f} + {fit['a']:.4g} · M^-{fit['m']:.4g}, residual "
        f"{fit['rms']:.2g} (root mean square); 95 % profile interval of the asymptote "
        f"{fit['c_low']:.4f} to {fit['c_high']:.4f}."
    )
    if data["refused"] is not None:
        return f"{text} {_sentence(data['refused'])}"
    return (
        f"{text} Areas: nonlinear error up to the mean FVU_nonlinear, "
        f"{data['mean_nonlinear']:.4f}; linear error from there to the asymptote; absent features "
        "from there to the fit. Where the interval is wide, so is the border between the last two."
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _add_areas(plot: Any, data: dict[str, Any]) -> None:
    curve, fit = data["curve"], data["fit"]
    tops = (
        [data["mean_nonlinear"]] * len(curve["width"]),
        [fit["c"]] * len(curve["width"]),
        curve["fvu"],
    )
    for place, ((label, colour), top) in enumerate(zip(BANDS, tops, strict=True)):
        plot.add_scatter(
            x=curve["width"],
            y=top,
            name=label,
            mode="lines",
            line={"width": 1, "color": "rgba(128,128,128,0.8)"},
            fill="tozeroy" if place == 0 else "tonexty",
            fillcolor=colour,
            hoverinfo="skip",
        )


def _add_curve(plot: Any, data: dict[str, Any]) -> None:
    plot.add_scatter(
        x=data["curve"]["width"],
        y=data["curve"]["fvu"],
        name="fit",
        mode="lines",
        line={"width": 1.5, "dash": "dash", "color": GREY},
        hoverinfo="skip",
    )


def asymptote(data: dict[str, Any]) -> Figure:
    """Residual of the best fit at each asymptote."""
    fit = data["fit"]
    plot = new_plot(
        "asymptote c (FVU at infinite width)",
        "residual (root mean square, FVU)",
        rangemode="tozero",
    )
    plot.add_vrect(
        x0=fit["c_low"], x1=fit["c_high"], fillcolor="rgba(47,129,196,0.18)", line_width=0
    )
    plot.add_scatter(
        x=fit["profile_c"],
        y=fit["profile_rms"],
        mode="lines",
        line={"color": BLUE, "width": 2},
        hovertemplate="c %{x:.4f}<br>residual %{y:.3g}<extra></extra>",
    )
    plot.add_vline(x=data["mean_nonlinear"], line={"dash": "dash", "width": 1.5, "color": ORANGE})
    plot.add_scatter(
        x=[fit["c"]], y=[fit["rms"]], mode="markers", marker={"color": BLUE, "size": 10}
    )
    return Figure(
        name="asymptote",
        title="How well the points determine the asymptote",
        plot=plot,
        caption="Residual of the best fit c + a · M^-m at each c. Shaded: the 95 % profile "
        f"interval (F-test of one parameter against {_freedom(data)}). "
        "Dashed: the mean FVU_nonlinear; left of it the areas of the breakdown would cross.",
        alt=f"Residual against c: best {fit['rms']:.3g} at c = {fit['c']:.4f}, interval "
        f"{fit['c_low']:.4f} to {fit['c_high']:.4f}; {fit['profile_rms'][0]:.3g} at c = 0.",
        data={"c": fit["profile_c"], "residual": fit["profile_rms"]},
    )


def _width_axis(widths: list[int]) -> dict[str, Any]:
    axis = log_axis([float(width) for width in widths])
    return axis | {
        "ticktext": [f"{tick:,.4g}" if tick < 1e4 else f"{tick:,.0f}" for tick in axis["tickvals"]]
    }


def _freedom(data: dict[str, Any]) -> str:
    left = len(data["width"]) - 3
    return f"{left} degree{'' if left == 1 else 's'} of freedom"


def contour(data: dict[str, Any]) -> Figure:
    """A number over width and L0."""
    title, points = CONTOUR_TITLES[data["metric"]], data["points"]
    widths = [point["width"] for point in points]
    l0 = [point["l0"] for point in points]
    values = [point["value"] for point in points]
    plot = new_plot(
        "width: number of latents (log)",
        "L0: active latents per row (log)",
        x_axis=_width_axis(widths),
        **log_axis(l0),
    )
    plot.update_layout(height=420)
    low, high = min(values), max(values)
    step = (high - low) / data["levels"] or 1e-6
    plot.add_contour(
        x=data["width"],
        y=data["l0"],
        z=data["surface"],
        colorscale="Viridis",
        contours={"start": low, "end": high, "size": step},
        line={"width": 0.5},
        connectgaps=False,
        colorbar={"thickness": 14, "tickformat": ".3f", "nticks": 7},
        hovertemplate="width %{x:.4g}, L0 %{y:.3g}<br>%{z:.4f}<extra></extra>",
    )
    plot.add_scatter(
        x=widths,
        y=l0,
        mode="markers",
        marker={"color": "#ffffff", "size": 8, "line": {"color": "#22262d", "width": 1.5}},
        customdata=[[point["name"], point["value"]] for point in points],
        hovertemplate="%{customdata[0]}<br>%{customdata[1]:.4f}<extra></extra>",
    )
    best, worst = max(points, key=_value), min(points, key=_value)
    return Figure(
        name=f"contour_{data['metric']}",
        title=f"{title} over width and L0",
        plot=plot,
        caption=f"{data['definition']} Linear interpolation between the dictionaries (circles) in "
        f"log width and log L0, {data['levels']} levels; nothing is drawn outside their hull.",
        alt=f"Contours of {title}: largest {best['value']:.4f} at {best['width']:,} latents and L0 "
        f"{best['l0']:.3g}, smallest {worst['value']:.4f} at {worst['width']:,} and "
        f"{worst['l0']:.3g}.",
        data={
            "dictionary": [point["name"] for point in points],
            "width": widths,
            "L0": l0,
            title: values,
        },
    )


def _value(point: dict[str, Any]) -> float:
    return point["value"]


FAMILY_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "breakdown": breakdown,
    "asymptote": asymptote,
    "scaling_matrix": scaling_matrix,
    "scaling_gain": scaling_gain,
    "contour_norm_r_squared": contour,
    "contour_error_r_squared": contour,
    "contour_fvu_nonlinear": contour,
    "family_recovery": family_recovery,
    "norm_test_violin": norm_test_violin,
    "family_trace_error": family_trace,
    "family_trace_linear_error": family_trace,
    "family_trace_nonlinear_error": family_trace,
}
"""By name, in reading order."""


def family_figures(figure_data: dict[str, Any], origin: str) -> list[Figure]:
    """Draw the figures of a family.

    Args:
        figure_data: by figure name.
        origin: where the data is from, for the error.

    Raises:
        ArtifactError: the data of a figure is not what the suite writes.
    """
    figures = []
    for name, draw in FAMILY_FIGURES.items():
        if name not in figure_data:
            continue
        try:
            figures.append(draw(figure_data[name]))
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
            raise ArtifactError(
                f"figure {name!r} of {origin} cannot be drawn from its data ({error!r}): the file "
                "was edited; evaluate again with --overwrite"
            ) from error
    return figures
