"""A plot together with everything needed to read it, and the look all plots share.

Colours keep a contrast of at least 3:1 on white and on near-black and are told apart without red
against green. Backgrounds are transparent; the page gives text the colour of its theme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

BLUE = "#2f81c4"
ORANGE = "#c46a1b"
GREEN = "#1f9470"
PURPLE = "#a05fb4"
TITLE_CHARACTERS = 42
"""Characters in a line of an axis's title: as many as a phone shows."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot, what it is called, what it shows, and its numbers for those who cannot see it."""

    name: str
    """Key, such as "density_histogram"."""
    title: str
    """Heading above the plot."""
    plot: go.Figure
    """The plot, with axis titles and units and without a title of its own."""
    caption: str
    """Definition of what is drawn."""
    alt: str
    """One sentence with the numbers a reader would take from the plot."""
    data: dict[str, list[Any]] = field(default_factory=dict)
    """The drawn numbers by column title."""
    wide: bool = False
    """Whether it takes the whole width of a page rather than half of it."""


def new_plot(
    x_title: str, y_title: str, *, x_axis: dict[str, Any] | None = None, **y_axis: Any
) -> go.Figure:
    """An empty plot in the common style.

    Args:
        x_title: what the horizontal axis measures, with its unit.
        y_title: what the vertical axis measures, with its unit.
        x_axis: further plotly settings of the horizontal axis.
        y_axis: further plotly settings of the vertical axis.
    """
    axis = {
        "gridcolor": "rgba(128,128,128,0.25)",
        "linecolor": "rgba(128,128,128,0.6)",
        "zeroline": False,
        "automargin": True,
        "title_standoff": 10,
    }
    horizontal = {"title_text": _lines(x_title), "showline": True, "ticks": "outside", **axis}
    # All at once: each later update of a plot takes as long as this.
    return go.Figure(
        layout={
            "template": "none",
            "height": 340,
            "margin": {"l": 64, "r": 20, "t": 24, "b": 56},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#777777"},
            "hoverlabel": {"bgcolor": "#22262d", "font": {"color": "#ffffff"}},
            "showlegend": False,
            "bargap": 0.06,
            "dragmode": False,
            "xaxis": {**horizontal, **(x_axis or {})},
            "yaxis": {"title_text": _lines(y_title), **axis, **y_axis},
        }
    )


def _lines(title: str) -> str:
    return "<br>".join(wrap(title, TITLE_CHARACTERS))


def log_axis(values: list[float]) -> dict[str, Any]:
    """A logarithmic axis around positive values, ticked at 1, 2 and 5 where few decades show."""
    lowest, highest = math.log10(min(values, default=1)), math.log10(max(values, default=1))
    margin = 0.04 * (highest - lowest) + 0.02
    low, high = lowest - margin, highest + margin
    decades = range(math.floor(low), math.ceil(high) + 1)
    # Few decades need ticks between them, many need fewer than one each.
    steps = (1, 2, 5) if high - low < 2 else (1,)
    if high - low < 0.7:
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    if sum(low <= math.log10(tick) <= high for tick in ticks) < 2:
        # Hardly a logarithmic axis: the ticks of a linear one.
        span = 10**high - 10**low
        step = 10.0 ** math.floor(math.log10(span / 2))
        step *= 1 if span < 5 * step else 2 if span < 10 * step else 5
        ticks = [step * n for n in range(math.ceil(10**low / step), int(10**high / step) + 1)]
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": [f"{tick:.4g}" for tick in ticks],
    }
