"""Curves of training runs: one figure per number, a line per dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.run_log import Curve

from .draw import draw
from .figure import Figure
from .line_styles import short_name

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


def _density(latent: str, share: str) -> CurveKind:
    caption = f"The density that {share} of the latents stay below, on each logged batch."
    return CurveKind(f"Density of {latent}", "share of tokens", "log", caption)


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
    "density_q10": _density("a rare latent (10 % quantile)", "10 %"),
    "density_q50": _density("the median latent", "half"),
    "density_q90": _density("a common latent (90 % quantile)", "90 %"),
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
    title = number.replace("_", " ")
    unknown = CurveKind(
        title[:1].upper() + title[1:], number, "linear", f"{number}, as the method logs it."
    )
    return CURVE_KINDS.get(number, unknown)


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
        names: every dictionary of the page, so that a line keeps its look from figure to figure.
        scale: of the vertical axis; None: the number's own. Log leaves out what is not positive.

    Returns:
        The figure; None where there is nothing to draw.
    """
    kind = kind_of(number)
    log, log_x = (scale or kind.scale) == "log", x_scale == "log"
    shown = {
        name: [
            (tokens, value)
            for tokens, value in zip(curve.tokens, curve.values, strict=True)
            if (value > 0 or not log) and (tokens > 0 or not log_x)
        ]
        for name, curve in curves.items()
    }
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return None
    ends = [
        f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g} at {points[-1][0]:,} tokens"
        for name, points in shown.items()
    ]
    chart = Chart(
        name=f"training_{number}",
        title=kind.title,
        caption=kind.caption,
        summary=f"{kind.title}: {'; '.join(ends)}.",
        x=Axis(title="tokens (rows) trained on", log=log_x),
        y=Axis(title=kind.axis, log=log),
        series=tuple(
            Series(
                name=short_name(name),
                x=[tokens for tokens, _ in points],
                y=[value for _, value in points],
                mark="lines+dots" if len(points) <= MOST_MARKERS else "lines",
                style=names.index(name),
            )
            for name, points in shown.items()
        ),
    )
    rows = [(name, *point) for name, points in shown.items() for point in points]
    columns = zip(("dictionary", "tokens", kind.axis), zip(*rows, strict=True), strict=True)
    return replace(draw(chart), data={title: list(column) for title, column in columns})
