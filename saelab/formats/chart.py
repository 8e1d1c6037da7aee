"""What a chart shows, as plain data: stored in a result, drawn by a report and by the dashboard.

A suite says what is measured on which axis; `draw` turns that into a plot. The data table and the
alternative text of a chart are derived from it, so no suite writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Mark = Literal["bars", "lines", "dots", "lines+dots", "steps", "histogram", "heat map", "violin"]
Number = float | int
Value = Number | str | None


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis measures."""

    title: str
    """Quantity with its unit, as in "density (share of rows)"."""
    log: bool = False
    """Whether the scale is logarithmic; values stay as they are."""
    low: Number | None = None
    """First value shown; None: as the data need."""
    high: Number | None = None
    """Last value shown; None: as the data need."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One set of marks: a line, a group of bars, the points of one kind."""

    name: str
    """What the legend and the data table call it."""
    x: list[Value] = field(default_factory=list)
    """Horizontal values or categories. A histogram's edges, one more than `y`."""
    y: list[Value] = field(default_factory=list)
    """Vertical values; None leaves a gap. A violin's values, with no `x`."""
    z: list[list[Number | None]] | None = None
    """Values of a heat map: a row per `y`, a column per `x`."""
    mark: Mark = "lines"
    """How it is drawn."""
    low: list[Number | None] | None = None
    """Lower ends of the error bars."""
    high: list[Number | None] | None = None
    """Upper ends of the error bars."""
    labels: list[str] | None = None
    """By point, text shown on hovering and in the data table."""
    text: list[str] | None = None
    """By bar or point, text written beside it."""
    weights: list[Number] | None = None
    """By point, how much it weighs: the area of its marker."""
    style: int | None = None
    """Index of its colour, dash and marker; None: its index in the chart."""
    dashed: bool = False
    """Whether its line is dashed, its bars are hatched: for controls and floors."""
    filled: bool = False
    """Whether the area down to the series before it, or to zero for the first, is filled."""
    axis: Literal["x", "y"] = "y"
    """Axis that bars grow along; "x" for horizontal bars."""


@dataclass(frozen=True, kw_only=True)
class ReferenceLine:
    """A straight line across the chart, such as a chance level."""

    value: Number
    """Value on the axis."""
    label: str
    """What it is."""
    axis: Literal["x", "y"] = "y"
    """The axis that `value` is on."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Everything a reader needs of one chart."""

    name: str
    """Key, such as "density_histogram"."""
    title: str
    """Heading."""
    caption: str
    """Definition of what is drawn, in sentences."""
    x: Axis
    """Horizontal axis."""
    y: Axis
    """Vertical axis."""
    series: tuple[Series, ...]
    """What is drawn."""
    summary: str = ""
    """Sentence with what a reader would take from it; empty: derived from the series."""
    lines: tuple[ReferenceLine, ...] = ()
    """Lines across it."""
    stacked: bool = False
    """Whether bars are stacked."""
    colour: str = ""
    """What the colours of a heat map measure, with the unit."""
    named_ends: bool = False
    """Whether lines carry their names at their right ends instead of in a legend."""
    height: int = 340
    """Height in pixels."""
    wide: bool = False
    """Whether it takes the whole width of a page."""
    section: str = "Charts"
    """Heading of the page that it is under."""

    def table(self) -> dict[str, list[Any]]:
        """The drawn numbers by column title.

        Example:
            >>> line = Series(name="topk", x=[16, 32], y=[0.2, 0.1])
            >>> axes = {"x": Axis(title="L0"), "y": Axis(title="FVU")}
            >>> Chart(name="a", title="A", caption="", series=(line,), **axes).table()
            {'L0': [16, 32], 'FVU': [0.2, 0.1]}
        """
        columns: dict[str, list[Any]] = {}
        rows = [(series.name, row) for series in self.series for row in self._rows(series)]
        if len(self.series) > 1:
            columns["series"] = [name for name, _ in rows]
        for title in dict.fromkeys(key for _, row in rows for key in row):
            columns[title] = [row.get(title) for _, row in rows]
        return columns

    def alternative_text(self) -> str:
        """A sentence for those who cannot see the chart."""
        if self.summary:
            return self.summary
        kinds = {"bars": "Bars", "histogram": "Histogram", "heat map": "Heat map"}
        kinds |= {"violin": "Violins", "dots": "Points"}
        kind = kinds.get(self.series[0].mark, "Lines") if self.series else "Empty chart"
        parts = [part for part in map(_in_words, self.series) if part]
        return f"{kind} of {self.y.title} against {self.x.title}: {'; '.join(parts)}."

    def _rows(self, series: Series) -> list[dict[str, Any]]:
        x, y = self.x.title or "x", self.y.title or "y"
        if series.z is not None:
            return [
                {x: column, y: row, self.colour: value}
                for row, values in zip(series.y, series.z, strict=True)
                for column, value in zip(series.x, values, strict=True)
            ]
        if series.mark == "histogram":
            edges = zip(series.x[:-1], series.x[1:], strict=True)
            return [
                {f"{x} from": low, f"{x} to": high, y: count}
                for (low, high), count in zip(edges, series.y, strict=True)
            ]
        if series.mark == "violin":
            return [{y: value} for value in series.y]
        rows = [{x: a, y: b} for a, b in zip(series.x, series.y, strict=True)]
        for title, column in (("low", series.low), ("high", series.high), ("", series.labels)):
            for row, value in zip(rows, column or [], strict=False):
                row[title or "label"] = value
        return rows


def _in_words(series: Series) -> str:
    values = series.x if series.axis == "x" and series.mark == "bars" else series.y
    known = [value for value in values if isinstance(value, int | float)]
    if series.z is not None:
        known = [value for row in series.z for value in row if value is not None]
    if not known:
        return ""
    if len(known) <= 6 and series.mark == "bars":
        names = series.y if series.axis == "x" else series.x
        stated = zip(names, values, strict=True)
        return f"{series.name} " + ", ".join(
            f"{name} {value:.4g}" for name, value in stated if isinstance(value, int | float)
        )
    return f"{series.name} from {min(known):.4g} to {max(known):.4g} ({len(known)} values)"
