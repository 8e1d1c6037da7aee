"""What figures of the suite "supervised" share: grouped bars with whiskers, and small panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from .figure import new_plot
from .line_styles import GREY, line_style, short_name

LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"}
PANEL_HEIGHT = 250
REFERENCES = ("no intervention", "random decoder")


def colour_of(name: str, names: Sequence[str]) -> str:
    """The colour of a contender, the same in every figure; floors are grey."""
    if name in REFERENCES:
        return GREY
    judged = [other for other in names if other not in REFERENCES]
    return line_style(name, judged).colour


def grouped_bars(
    plot: go.Figure,
    bars: Sequence[dict[str, Any]],
    names: Sequence[str],
    *,
    whiskers: bool = True,
    hatched: Sequence[str] = (),
    **where: Any,
) -> None:
    """Add a group of bars per category, one bar per name.

    Args:
        plot: what to draw on.
        bars: with series, category, value, low and high.
        names: every series, in order.
        whiskers: whether to draw low and high.
        hatched: series that are drawn hatched.
        where: further plotly settings of the bars, such as their axes.
    """
    for name in names:
        mine = [bar for bar in bars if bar["series"] == name]
        if not mine:
            continue
        known = whiskers and all(bar["low"] is not None for bar in mine)
        base = name.rsplit(" (", 1)[0]
        plot.add_bar(
            x=[_broken(bar["category"]) for bar in mine],
            y=[bar["value"] for bar in mine],
            name=short_name(name),
            marker={
                "color": colour_of(base, list(dict.fromkeys(n.rsplit(" (", 1)[0] for n in names))),
                "pattern": {"shape": "/" if name in hatched else "", "solidity": 0.5},
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [bar["high"] - bar["value"] for bar in mine] if known else [],
                "arrayminus": [bar["value"] - bar["low"] for bar in mine] if known else [],
                "thickness": 1,
                "width": 2,
                "color": "#808791",
            },
            hovertemplate=f"{name}<br>%{{x}}<br>%{{y:.3f}}<extra></extra>",
            **where,
        )
    plot.update_layout(
        barmode="group", bargap=0.25, bargroupgap=0.05, showlegend=True, legend=LEGEND
    )
    plot.update_layout(margin={"t": 60})


def _broken(text: str) -> str:
    """A category that wraps at its last word of place."""
    return text.replace(" at ", "<br>at ")


def panels(
    titles: Sequence[str], x_title: str, y_title: str, *, columns: int = 3, **y_axis: Any
) -> tuple[go.Figure, list[tuple[str, str]]]:
    """A plot of small panels in rows, sharing their axes' meaning.

    Args:
        titles: one per panel.
        x_title: what every horizontal axis measures.
        y_title: what every vertical axis measures.
        columns: panels in a row at most.
        y_axis: further plotly settings of the vertical axes.

    Returns:
        The plot, and per panel the names of its axes for plotly's `xaxis` and `yaxis`.
    """
    plot = new_plot("", "")
    n_columns = max(1, min(columns, len(titles)))
    n_rows = max(1, -(-len(titles) // n_columns))
    gap_x, gap_y = 0.09, min(0.35, 0.42 / n_rows) if n_rows > 1 else 0.0
    width = (1 - gap_x * (n_columns - 1)) / n_columns
    height = (1 - gap_y * (n_rows - 1)) / n_rows
    layout: Any = plot.layout
    template = layout.xaxis.to_plotly_json(), layout.yaxis.to_plotly_json()
    names = []
    for place, title in enumerate(titles):
        row, column = divmod(place, n_columns)
        left, top = column * (width + gap_x), 1 - row * (height + gap_y)
        number = "" if place == 0 else str(place + 1)
        x_name, y_name = f"x{number}", f"y{number}"
        names.append((x_name, y_name))
        below = place + n_columns >= len(titles)
        plot.update_layout(
            {
                f"xaxis{number}": template[0]
                | {
                    "domain": [left, min(1.0, left + width)],
                    "anchor": y_name,
                    "title": {"text": x_title if below else ""},
                },
                f"yaxis{number}": template[1]
                | {
                    "domain": [max(0.0, top - height), top],
                    "anchor": x_name,
                    "title": {"text": y_title if column == 0 else ""},
                    **y_axis,
                },
            }
        )
        plot.add_annotation(
            xref="paper",
            yref="paper",
            x=left + width / 2,
            y=top,
            yshift=14,
            text=f"<b>{short_name(title) if len(title) > 44 else title}</b>",
            showarrow=False,
            font={"size": 12},
        )
    plot.update_layout(
        height=PANEL_HEIGHT * n_rows + 110,
        showlegend=True,
        legend={**LEGEND, "y": 1 + 45 / (PANEL_HEIGHT * n_rows)},
        margin={"t": 90, "b": 60},
    )
    return plot, names
