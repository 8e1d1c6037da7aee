"""From a chart as data to a plot: the one place that knows plotly's marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series

from .figure import Figure, log_axis, new_plot
from .line_styles import LineStyle, line_style, name_lines

MOST_STYLES = 12


def draw(chart: Chart) -> Figure:
    """The plot of a chart with its caption, alternative text and data table."""
    plot = new_plot(
        chart.x.title,
        chart.y.title,
        x_axis=_axis(chart.x, _values(chart, "x")),
        **_axis(chart.y, _values(chart, "y")),
    )
    plot.update_layout(height=chart.height, barmode="stack" if chart.stacked else "group")
    named = len(chart.series) > 1 and not chart.named_ends
    if named:
        legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
        plot.update_layout(showlegend=True, legend=legend, margin_t=56)
    for index, series in enumerate(chart.series):
        _add(plot, chart, series, _style(series, index))
    for line in chart.lines:
        _add_line(plot, line)
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


def _values(chart: Chart, axis: str) -> list[float]:
    given = [value for series in chart.series for value in getattr(series, axis)]
    if axis == "y":
        ends = [value for s in chart.series for value in [*(s.low or []), *(s.high or [])]]
        given += ends
    return [value for value in given if isinstance(value, int | float)]


def _axis(axis: Axis, values: Sequence[float]) -> dict[str, Any]:
    if axis.log:
        positive = [value for value in values if value > 0]
        limits = [value for value in (axis.low, axis.high) if value]
        return log_axis([*positive, *limits])
    if axis.low is None and axis.high is None:
        return {}
    return {"range": [axis.low, axis.high]}


def _style(series: Series, index: int) -> LineStyle:
    names = [str(number) for number in range(MOST_STYLES)]
    chosen = index if series.style is None else series.style
    style = line_style(str(chosen % MOST_STYLES), names)
    return LineStyle(style.colour, "dash" if series.dashed else style.dash, style.marker)


def _add(plot: go.Figure, chart: Chart, series: Series, style: LineStyle) -> None:
    hover = "%{hovertext}<br>" if series.labels else ""
    common: dict[str, Any] = {
        "name": series.name,
        "hovertext": series.labels,
        "hovertemplate": f"{hover}{chart.x.title} %{{x}}<br>{chart.y.title} %{{y:.4g}}"
        f"<extra>{series.name}</extra>",
    }
    if series.mark == "heat map":
        plot.add_heatmap(
            x=series.x,
            y=series.y,
            z=series.z,
            colorscale="RdBu" if _has_negative(series) else "Blues",
            zmid=0 if _has_negative(series) else None,
            colorbar={"title": {"text": chart.colour, "side": "right"}},
            hovertemplate=f"%{{x}}<br>%{{y}}<br>{chart.colour} %{{z:.4g}}<extra></extra>",
        )
    elif series.mark == "violin":
        plot.add_violin(
            y=series.y,
            name=series.name,
            line_color=style.colour,
            box_visible=True,
            points=False,
            hoverinfo="y",
        )
    elif series.mark == "histogram":
        _add_histogram(plot, chart, series, style)
    elif series.mark == "bars":
        across = series.axis == "x"
        plot.add_bar(
            x=series.x,
            y=series.y,
            orientation="h" if across else "v",
            marker_color=style.colour,
            text=series.text,
            textposition="inside" if chart.stacked else "outside",
            cliponaxis=False,
            **_error(series, style, "error_x" if across else "error_y"),
            **common,
        )
        if across:
            plot.update_yaxes(autorange="reversed")
    else:
        modes = {"lines": "lines", "dots": "markers", "steps": "lines"}
        mode = modes.get(series.mark, "lines+markers") + ("+text" if series.text else "")
        plot.add_scatter(
            x=series.x,
            y=series.y,
            mode=mode,
            line=style.line() | ({"shape": "hv"} if series.mark == "steps" else {}),
            marker=style.points(6),
            text=series.text,
            textposition="top center",
            **_error(series, style, "error_y"),
            **common,
        )


def _has_negative(series: Series) -> bool:
    return any(value is not None and value < 0 for row in series.z or [] for value in row)


def _add_histogram(plot: go.Figure, chart: Chart, series: Series, style: LineStyle) -> None:
    edges: list[Any] = series.x
    bins = list(zip(edges[:-1], edges[1:], strict=True))
    if chart.x.log:
        centres = [(low * high) ** 0.5 for low, high in bins]
    else:
        centres = [(low + high) / 2 for low, high in bins]
    plot.update_layout(bargap=0.02)
    plot.add_bar(
        x=centres,
        y=series.y,
        width=None if chart.x.log else [high - low for low, high in bins],
        name=series.name,
        marker_color=style.colour,
        customdata=bins,
        hovertemplate="%{y:,}<br>%{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>",
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


def _add_line(plot: go.Figure, line: ReferenceLine) -> None:
    add = plot.add_hline if line.axis == "y" else plot.add_vline
    add(
        **{line.axis: line.value},
        line={"dash": "dash", "width": 1.5, "color": "#808791"},
        annotation={"text": line.label, "font": {"size": 11}},
    )


def _name_ends(plot: go.Figure, chart: Chart) -> None:
    """Names beside the last points; the vertical range is fixed for it."""
    ends, names = [], [str(index) for index in range(len(chart.series))]
    values = _values(chart, "y")
    margin = 0.06 * (max(values) - min(values)) or 0.05
    low = min(values) - margin if chart.y.low is None else chart.y.low
    high = max(values) + margin if chart.y.high is None else chart.y.high
    for index, series in enumerate(chart.series):
        known = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y is not None]
        if known:
            ends.append((str(index), *known[-1]))
    plot.update_yaxes(range=[low, high])
    edge: Any = max(x for _, x, _ in ends)
    labels = {str(index): series.name for index, series in enumerate(chart.series)}
    name_lines(plot, ends, names, edge=edge, y_range=(low, high), labels=labels)
