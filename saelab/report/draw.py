"""From a chart as data to a plot: only this module knows plotly's marks."""

from __future__ import annotations

import math
from html import escape
from itertools import pairwise
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series

from .figure import BLUE, ORANGE, Figure, log_axis, new_plot
from .line_styles import GREY, LineStyle, line_style, short_name, spread_apart

LABEL_PIXELS = 16
"""Height that the name of a line takes."""
LEGEND_CHARACTERS = 76
"""Characters of names that fit beside one another above a plot of half a page."""
MANY_POINTS = 200
NAME_CHARACTERS = 16
"""Characters of a name in a line below a horizontal axis."""
MOST_WRITTEN = 144
"""Cells of a heat map that are written into it."""


def draw(chart: Chart) -> Figure:
    """The plot of a chart with its caption, alternative text and data table."""
    plot = new_plot(chart.x.title, chart.y.title, x_axis=_axis(chart, "x"), **_axis(chart, "y"))
    plot.update_layout(height=chart.height, barmode="stack" if chart.stacked else "group")
    if len(chart.series) > 1 and not chart.named_ends:
        legend = {"orientation": "h", "xref": "container", "x": 0, "yref": "container", "y": 1}
        written = sum(len(series.name) + 8 for series in chart.series)
        more = 20 * (written // (LEGEND_CHARACTERS * (2 if chart.wide else 1)))
        plot.update_layout(showlegend=True, legend=legend, legend_yanchor="top")
        plot.update_layout(margin_t=56 + more, height=chart.height + more)
    marks = {
        "heat map": _add_heat_map,
        "violin": _add_violin,
        "histogram": _add_histogram,
        "bars": _add_bars,
    }
    for index, series in enumerate(chart.series):
        add = marks.get(series.mark, _add_points)
        add(plot, chart, series, _style(series, index))
    for line in chart.lines:
        _add_line(plot, chart, line)
    if chart.named_ends:
        _name_ends(plot, chart)
    return Figure(
        name=chart.name,
        title=chart.title,
        plot=plot,
        caption=chart.caption,
        alt=chart.alternative_text(),
        data=chart.table(),
        wide=chart.wide,
    )


def _shown(values: list[Any] | None) -> list[Any] | None:
    """Values as plotly takes them: it reads some HTML, so the signs of text are escaped."""
    if values is None:
        return None
    return [escape(v, quote=False) if isinstance(v, str) else v for v in values]


def _values(chart: Chart, axis: str) -> list[float | int]:
    given: list[Any] = [value for series in chart.series for value in getattr(series, axis)]
    grown = {series.axis for series in chart.series if series.mark == "bars"} or {"y"}
    if axis in grown:
        given += [value for s in chart.series for value in [*(s.low or []), *(s.high or [])]]
    given += [line.value for line in chart.lines if line.axis == axis]
    return [value for value in given if isinstance(value, int | float)]


def _axis(chart: Chart, name: str) -> dict[str, Any]:
    axis: Axis = getattr(chart, name)
    values = _values(chart, name)
    marked = [value for series in chart.series for value in getattr(series, name)]
    if marked and all(isinstance(value, str) for value in marked):
        # Names may be written as numbers, such as the index of a feature; long ones are wrapped.
        names = list(dict.fromkeys(marked))
        wrapped = names if name == "y" else ["\n".join(wrap(n, NAME_CHARACTERS)) for n in names]
        texts = [escape(text, quote=False).replace("\n", "<br>") for text in wrapped]
        return {"type": "category", "tickvals": _shown(names), "ticktext": texts}
    if axis.log:
        limits = [value for value in (axis.low, axis.high) if value]
        ticks = log_axis([float(value) for value in (*values, *limits) if value > 0])
        if name == "y" and any(series.mark == "histogram" for series in chart.series):
            # Counts: half a one is no tick.
            whole = [index for index, tick in enumerate(ticks["tickvals"]) if tick % 1 == 0]
            ticks |= {key: [ticks[key][i] for i in whole] for key in ("tickvals", "ticktext")}
        return ticks
    low, high = axis.low, axis.high
    written = [s for s in chart.series if s.mark == "bars" and s.text and s.axis == name]
    if written and values and not chart.stacked:
        # Text outside of bars is no part of what plotly fits a range to.
        margin = 0.18 * (max(*values, 0) - min(*values, 0)) or 0.1
        low = (min(values) - margin if min(values) < 0 else 0) if low is None else low
        high = (max(values) + margin if max(values) > 0 else 0) if high is None else high
    if low == 0 and high is None:
        return {"rangemode": "tozero"}
    return {} if low is None and high is None else {"range": [low, high]}


def _style(series: Series, index: int) -> LineStyle:
    style = line_style(index if series.style is None else series.style)
    return LineStyle(style.colour, "dash" if series.dashed else style.dash, style.marker)


def _hover(chart: Chart, series: Series) -> dict[str, Any]:
    """Name and hover text of marks that have an x and a y, each with the title of its axis."""
    formats = {
        axis: ":.4g" if all(isinstance(v, int | float | None) for v in values) else ""
        for axis, values in (("x", series.x), ("y", series.y))
    }
    label = "%{hovertext}<br>" if series.labels else ""
    return {
        "name": escape(series.name, quote=False),
        "hovertext": _shown(series.labels),
        "hovertemplate": f"{label}{chart.x.title}: %{{x{formats['x']}}}<br>{chart.y.title}: "
        f"%{{y{formats['y']}}}<extra>{_harmless(series.name)}</extra>",
    }


def _harmless(name: str) -> str:
    """A name inside plotly's hover template."""
    return escape(name, quote=False).replace("{", "(").replace("}", ")")


def _add_heat_map(plot: go.Figure, chart: Chart, series: Series, _: LineStyle) -> None:
    signed = any(value is not None and value < 0 for row in series.z or [] for value in row)
    cells = series.z or []
    few = sum(map(len, cells)) <= MOST_WRITTEN
    # See-through towards zero, so that either theme shows and its text can be read on every cell.
    blue = [[0, "rgba(47,129,196,0)"], [1, "rgba(47,129,196,0.7)"]]
    both = [[0, "rgba(196,106,27,0.7)"], [0.5, "rgba(128,128,128,0)"], blue[1]]
    plot.add_heatmap(
        x=_shown(series.x),
        y=_shown(series.y),
        z=cells,
        colorscale=both if signed else blue,
        zmid=0 if signed else None,
        zmin=None if signed else 0,
        text=[["" if v is None else f"{v:.2g}" for v in row] for row in cells] if few else None,
        texttemplate="%{text}" if few else None,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": chart.colour, "side": "right"}},
        hovertemplate=f"{chart.x.title}: %{{x}}<br>{chart.y.title}: %{{y}}<br>{chart.colour}: "
        "%{z:.4g}<extra></extra>",
    )
    if not all(isinstance(value, int | float) for value in series.y):
        # The first row on top, as in a table.
        plot.update_yaxes(autorange="reversed")


def _add_violin(plot: go.Figure, chart: Chart, series: Series, style: LineStyle) -> None:
    plot.add_violin(
        y=series.y,
        name=escape(series.name, quote=False),
        line_color=style.colour,
        box_visible=True,
        meanline_visible=True,
        points=False,
        hovertemplate=f"{chart.y.title}: %{{y:.4g}}<extra>{series.name}</extra>",
    )
    plot.update_layout(showlegend=False)


def _add_bars(plot: go.Figure, chart: Chart, series: Series, style: LineStyle) -> None:
    across = series.axis == "x"
    values: list[Any] = series.x if across else series.y
    # Bars to both sides of zero: their sides differ in colour as well.
    two_sided = across and len(chart.series) == 1 and min(values, default=0) < 0
    colours = [BLUE if value >= 0 else ORANGE for value in values] if two_sided else style.colour
    plot.add_bar(
        x=_shown(series.x),
        y=_shown(series.y),
        orientation="h" if across else "v",
        marker={
            "color": colours,
            "pattern": {"shape": "/" if series.dashed else "", "fillmode": "replace"},
        },
        text=_shown(series.text),
        textposition="inside" if chart.stacked else "outside",
        cliponaxis=False,
        **_error(series, style, "error_x" if across else "error_y"),
        **_hover(chart, series),
    )
    if across:
        plot.update_yaxes(autorange="reversed")


def _add_points(plot: go.Figure, chart: Chart, series: Series, style: LineStyle) -> None:
    modes = {"lines": "lines", "dots": "markers", "steps": "lines"}
    marker = style.points(4 if len(series.x) > MANY_POINTS else 6)
    if len(series.x) > MANY_POINTS:
        marker |= {"opacity": 0.6, "line": {"width": 0}}
    if series.weights:
        largest = max(series.weights) or 1
        marker |= {"size": [4 + 14 * (weight / largest) ** 0.5 for weight in series.weights]}
    plot.add_scatter(
        x=_shown(series.x),
        y=_shown(series.y),
        mode=modes.get(series.mark, "lines+markers") + ("+text" if series.text else ""),
        line={
            "color": style.colour,
            "dash": style.dash,
            "shape": "hv" if series.mark == "steps" else "linear",
        },
        marker=marker,
        text=_shown(series.text),
        textposition="top center",
        fill=("tonexty" if plot.data else "tozeroy") if series.filled else None,
        **_error(series, style, "error_y"),
        **_hover(chart, series),
    )


def _add_histogram(plot: go.Figure, chart: Chart, series: Series, style: LineStyle) -> None:
    edges: list[Any] = series.x
    bins = list(pairwise(edges))
    # Widths are in the units of the data on a logarithmic axis too: bars end at their edges.
    plot.add_bar(
        x=[(low + high) / 2 for low, high in bins],
        y=series.y,
        width=[high - low for low, high in bins],
        name=escape(series.name, quote=False),
        marker={"color": style.colour, "line": {"width": 1, "color": "rgba(128,128,128,0.4)"}},
        customdata=bins,
        hovertemplate=f"{chart.x.title}: %{{customdata[0]:.4g}} to %{{customdata[1]:.4g}}<br>"
        f"{chart.y.title}: %{{y:,.4g}}<extra>{series.name}</extra>",
    )


def _error(series: Series, style: LineStyle, key: str) -> dict[str, Any]:
    if series.low is None or series.high is None:
        return {}
    values: list[Any] = series.x if key == "error_x" else series.y
    ends = list(zip(values, series.low, series.high, strict=True))
    return {
        key: {
            "type": "data",
            "symmetric": False,
            "array": [0 if None in (v, high) else high - v for v, _, high in ends],
            "arrayminus": [0 if None in (v, low) else v - low for v, low, _ in ends],
            "color": style.colour,
            "thickness": 1.25,
            "width": 3,
        }
    }


def _add_line(plot: go.Figure, chart: Chart, line: ReferenceLine) -> None:
    along, across = line.axis, "x" if line.axis == "y" else "y"
    plot.add_shape(
        type="line",
        line={"dash": "dash", "width": 1.5, "color": GREY},
        **{
            f"{along}0": line.value,
            f"{along}1": line.value,
            f"{across}0": 0,
            f"{across}1": 1,
            f"{across}ref": "paper",
        },
    )
    # Unlike shapes, annotations stand at the logarithm on a logarithmic axis.
    log = getattr(chart, along).log
    values = _values(chart, along)
    # Beside a vertical line, on the side with more room, and one below the other.
    right = along == "y" or 2 * line.value > max(values) + min(values)
    below = (
        0
        if along == "y"
        else [upright for upright in chart.lines if upright.axis == "x"].index(line)
    )
    plot.add_annotation(
        text=escape(line.label, quote=False),
        font={"size": 11},
        showarrow=False,
        xanchor="right" if right else "left",
        yanchor="bottom" if along == "y" else "top",
        **{
            along: math.log10(line.value) if log else line.value,
            across: 1 - 0.08 * below,
            f"{across}ref": "paper",
        },
    )


def _name_ends(plot: go.Figure, chart: Chart) -> None:
    """Names at the right edge, joined to the last points; the vertical range is fixed for it."""
    log = chart.y.log
    ends: list[Any] = []
    for index, series in enumerate(chart.series):
        points: list[Any] = [
            (x, math.log10(y) if log else y)
            for x, y in zip(series.x, series.y, strict=True)
            if isinstance(y, int | float) and (y > 0 or not log)
        ]
        if points:
            name = escape(short_name(series.name), quote=False)
            ends.append((name, _style(series, index), *points[-1]))
    if not ends:
        return
    layout: Any = plot.layout
    if not log:
        values = _values(chart, "y")
        margin = 0.06 * (max(values) - min(values)) or 0.05
        low = min(values) - margin if chart.y.low is None else chart.y.low
        high = max(values) + margin if chart.y.high is None else chart.y.high
        plot.update_yaxes(range=[low, high])
    low, high = layout.yaxis.range
    gap = LABEL_PIXELS / (layout.height - layout.margin.t - layout.margin.b) * (high - low)
    heights = spread_apart([y for *_, y in ends], gap, low, high)
    edge = max(x for _, _, x, _ in ends)
    for (name, style, x, y), height in zip(ends, heights, strict=True):
        plot.add_scatter(
            x=[x, edge],
            y=[10**y, 10**height] if log else [y, height],
            mode="lines+markers",
            line={"color": style.colour, "width": 0.75},
            marker=style.points(8) | {"size": [0, 8]},
            opacity=0.7,
            cliponaxis=False,
            hoverinfo="skip",
        )
        plot.add_annotation(
            xref="paper",
            x=1,
            xshift=8,
            y=height,
            text=name,
            showarrow=False,
            xanchor="left",
            yanchor="middle",
            font={"size": 12},
        )
    plot.update_layout(margin={"r": 22 + 7 * max(len(name) for name, *_ in ends)})
