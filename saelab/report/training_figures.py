"""Curves of training runs: one figure per number, a line per dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from saelab.formats.run_log import Curve

from .figure import Figure, log_axis, new_plot
from .line_styles import line_style, short_name

Scale = Literal["log", "linear"]
MOST_MARKERS = 60
"""Points of a line up to which each is marked."""


class CurveKind(NamedTuple):
    """How a logged number is shown."""

    title: str
    axis: str
    """What the vertical axis measures, with its unit."""
    scale: Scale
    """Of the vertical axis, where nothing else is asked for."""
    caption: str


CURVE_KINDS: dict[str, CurveKind] = {
    "loss": CurveKind(
        "Training loss",
        "loss, all terms (share of variance)",
        "log",
        "Sum of all loss terms on each logged batch; AuxK joins once latents are dead.",
    ),
    "fvu": CurveKind(
        "Fraction of variance unexplained (FVU)",
        "FVU",
        "log",
        "Σ‖x − x̂‖² / Σ‖x − mean‖² on each logged training batch, against the batch's own mean.",
    ),
    "l0": CurveKind(
        "Active latents per token (L0)",
        "latents per token",
        "linear",
        "Mean number of positive codes per token on each logged batch.",
    ),
    "dead_fraction": CurveKind(
        "Dead latents",
        "share of latents",
        "linear",
        "Latents silent for as many tokens as the method's setting dead_after_tokens says.",
    ),
    "density_q10": CurveKind(
        "Density of a rare latent (10 % quantile)",
        "share of tokens",
        "log",
        "The density that 10 % of the latents stay below, on each logged batch.",
    ),
    "density_q50": CurveKind(
        "Density of the median latent",
        "share of tokens",
        "log",
        "The density that half of the latents stay below, on each logged batch.",
    ),
    "density_q90": CurveKind(
        "Density of a common latent (90 % quantile)",
        "share of tokens",
        "log",
        "The density that 90 % of the latents stay below, on each logged batch.",
    ),
    "tokens_per_second": CurveKind(
        "Speed",
        "tokens per second",
        "linear",
        "Tokens (rows) per second of the whole run, all its dictionaries together.",
    ),
}
"""The numbers every method logs, in reading order."""


def kind_of(number: str) -> CurveKind:
    """How a number is shown; one that is not in `CURVE_KINDS` goes by its own name."""
    known = CURVE_KINDS.get(number)
    if known is not None:
        return known
    title = number.replace("_", " ")
    return CurveKind(
        title[:1].upper() + title[1:], number, "linear", f"{number}, as the method logs it."
    )


def training_figure(
    number: str,
    curves: Mapping[str, Curve],
    names: Sequence[str],
    *,
    scale: Scale | None = None,
    x_scale: Scale = "linear",
) -> Figure | None:
    """One number over training.

    Args:
        number: its name in the log.
        curves: by dictionary.
        names: every dictionary of the page, so that a line keeps its look from figure to figure.
        scale: of the vertical axis; None: the number's own. Log leaves out what is not positive.
        x_scale: of the horizontal axis.

    Returns:
        The figure; None where there is nothing to draw.
    """
    kind = kind_of(number)
    scale = scale or kind.scale
    shown = {name: _positive(curve, scale, x_scale) for name, curve in curves.items()}
    shown = {name: curve for name, curve in shown.items() if curve.values}
    if not shown:
        return None
    values = [value for curve in shown.values() for value in curve.values]
    axis = log_axis(values) if scale == "log" else {"type": "linear"}
    plot = new_plot("tokens (rows) trained on", kind.axis, x_axis={"type": x_scale}, **axis)
    for name, curve in shown.items():
        style = line_style(name, names)
        plot.add_scatter(
            x=curve.tokens,
            y=curve.values,
            name=short_name(name),
            mode="lines+markers" if len(curve.values) <= MOST_MARKERS else "lines",
            line=style.line(),
            marker=style.points(6),
            hovertemplate="%{y:.4g} at %{x:,} tokens<extra>" + _harmless(name) + "</extra>",
        )
    if len(names) > 1:
        rows = -(-len(shown) // 2)
        plot.update_layout(
            showlegend=True,
            legend={"orientation": "h", "y": -0.24, "yanchor": "top", "font": {"size": 12}},
            height=360 + 22 * rows,
        )
    return Figure(
        name=f"training_{number}",
        title=kind.title,
        plot=plot,
        caption=kind.caption,
        alt=f"{kind.title}: "
        + "; ".join(
            f"{name} from {curve.values[0]:.4g} to {curve.values[-1]:.4g} at "
            f"{curve.tokens[-1]:,} tokens"
            for name, curve in shown.items()
        )
        + ".",
        data={
            "dictionary": [name for name, curve in shown.items() for _ in curve.values],
            "tokens": [tokens for curve in shown.values() for tokens in curve.tokens],
            kind.axis: values,
        },
    )


def _positive(curve: Curve, scale: Scale, x_scale: Scale) -> Curve:
    """The points that the axes can show."""
    pairs = [
        (tokens, value)
        for tokens, value in zip(curve.tokens, curve.values, strict=True)
        if (scale == "linear" or value > 0) and (x_scale == "linear" or tokens > 0)
    ]
    return Curve([tokens for tokens, _ in pairs], [value for _, value in pairs])


def _harmless(name: str) -> str:
    """A name inside plotly's hover template."""
    return name.replace("<", "&lt;").replace("{", "(").replace("}", ")")
