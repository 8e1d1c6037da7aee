"""An HTML page in one file: plotly.js once, no network, light and dark, usable by keyboard."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from saelab.formats.evaluation_result import MeasuredMetric
from saelab.formats.files import write_bytes

from .figure import Figure

MOST_DATA_ROWS = 300

CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
"""What the page may load: nothing from anywhere."""

STYLE = """
:root {
  --page: #ffffff; --card: #f6f7f9; --text: #1b1f24; --muted: #55606c; --line: #d5dae0;
  --accent: #0b62ab;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2026; --text: #e8eaed; --muted: #a7b0ba; --line: #3a424c;
    --accent: #7ab8ee;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
}
header, main { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.75rem; }
main {
  padding-bottom: 4rem; display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem;
}
main > * { grid-column: 1 / -1; min-width: 0; }
main > figure { grid-column: auto; }
main > figure.wide { grid-column: 1 / -1; }
@media (max-width: 60rem) { main > figure { grid-column: 1 / -1; } }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 1.5rem 0 0; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: 0; max-width: 60rem; }
.subtitle { color: var(--muted); overflow-wrap: anywhere; }
.skip {
  position: absolute; left: -100vw; padding: .5rem 1rem; background: var(--page);
  color: var(--accent);
}
.skip:focus { left: 0; top: 0; z-index: 10; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
figure {
  margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px;
}
figcaption, caption { color: var(--muted); font-size: .875rem; }
caption { text-align: left; padding: .25rem 0; }
.plot { width: 100%; min-height: 340px; }
.plot svg text { fill: var(--text) !important; }
.plot .hoverlayer text { fill: #ffffff !important; }
details { margin-top: .5rem; font-size: .875rem; }
details .scroll { max-height: 20rem; }
summary { cursor: pointer; color: var(--accent); width: fit-content; }
.scroll { overflow: auto; }
table { border-collapse: collapse; min-width: min(100%, 44rem); font-size: .9375rem; }
details table { font-size: .8125rem; }
th, td {
  text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0;
  border-bottom: 1px solid var(--line);
}
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 600; overflow-wrap: break-word; }
.defined th:first-child { width: 17rem; }
.defined th:nth-child(2) { width: 6rem; }
.defined th:nth-child(3) { width: 10rem; }
.defined table { width: 100%; table-layout: fixed; min-width: 52rem; }
td, th { overflow-wrap: break-word; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
@media print { .skip, details { display: none; } figure { break-inside: avoid; } }
"""

SCRIPT = """
plots.forEach((plot, index) => {
  const config = {displayModeBar: false, responsive: true};
  Plotly.newPlot("plot-" + index, plot.data, plot.layout, config);
});
"""


class Report:
    """A page put together from top to bottom; every `add_` returns the report.

    Example:
        >>> report = Report("Widths compared").add_text("Two dictionaries on the same text.")
        >>> report = report.add_table("L0", ["dictionary", "L0"], [["a", 32.0], ["b", 64.0]])
    """

    def __init__(self, title: str, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[str] = []
        self._plots: list[go.Figure] = []

    def add_heading(self, text: str) -> Report:
        """Start a section."""
        self._blocks.append(f"<h2>{escape(text)}</h2>")
        return self

    def add_text(self, text: str) -> Report:
        """Add a paragraph."""
        self._blocks.append(f"<p>{escape(text)}</p>")
        return self

    def add_table(
        self, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> Report:
        """Add a table; the first column heads its row, numbers are set right-aligned."""
        self._blocks.append(html_table(caption, columns, rows))
        return self

    def add_metrics(self, caption: str, metrics: Sequence[MeasuredMetric]) -> Report:
        """Add a table of metrics with their units and definitions."""
        columns = ["metric", "value", "unit", "definition"]
        rows = [[m.name, m.value, unit_text(m.unit), m.definition] for m in metrics]
        self._blocks.append(html_table(caption, columns, rows, kind="defined"))
        return self

    def add_figures(self, figures: Sequence[Figure]) -> Report:
        """Add plots with their captions, alternative texts and, on request, their numbers."""
        for figure in figures:
            index, kind = len(self._plots), ' class="wide"' if figure.wide else ""
            self._plots.append(figure.plot)
            self._blocks.append(
                f'<figure{kind} aria-labelledby="title-{index}">'
                f'<h3 id="title-{index}">{escape(figure.title)}</h3>'
                f'<div class="plot" id="plot-{index}" role="img" aria-label="{escape(figure.alt)}">'
                f"</div><figcaption>{escape(figure.caption)}</figcaption>"
                f"{_data_table(figure.title, figure.data)}</figure>"
            )
        return self

    def to_html(self) -> str:
        """The page as text."""
        scripts = ""
        if self._plots:
            from plotly.offline import get_plotlyjs

            # "</" may not appear inside a script element; JSON allows the escaped slash.
            plots = ",".join(plot.to_json() or "null" for plot in self._plots).replace("</", "<\\/")
            scripts = (
                f"<script>{get_plotlyjs()}</script>"
                f"<script>const plots = [{plots}];\n{SCRIPT}</script>"
            )
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>\n<body>"
            '<a class="skip" href="#content">Skip to content</a>'
            f'<header><h1>{escape(self.title)}</h1>{subtitle}</header>\n<main id="content">'
            + "\n".join(self._blocks)
            + f"</main>{scripts}</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page atomically and return where it is."""
        write_bytes(path, self.to_html().encode())
        return path


def format_value(value: Any) -> str:
    """A cell's text: four significant digits for fractions, grouped thousands for counts."""
    if value is None:
        return "undefined"
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def unit_text(unit: str) -> str:
    """A unit as a reader expects it; "1" is a ratio."""
    return "ratio" if unit == "1" else unit


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Html(str):
    """A table's cell that is HTML already; every other cell is escaped."""

    __slots__ = ()


def html_table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "plain"
) -> str:
    """A table whose first column heads its row; numbers are set right-aligned.

    Args:
        caption: shown above the table, and read out before it.
        rows: cells, as `format_value` takes them, or `Html`.
        kind: class of the frame.
    """

    def cell(value: Any, column: int) -> str:
        text = value if isinstance(value, Html) else escape(format_value(value))
        if column == 0:
            return f'<th scope="row">{text}</th>'
        number = _is_number(value) or value is None
        return f'<td class="number">{text}</td>' if number else f"<td>{text}</td>"

    numeric = [
        column > 0 and any(_is_number(row[column]) for row in rows)
        for column, _ in enumerate(columns)
    ]
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{escape(title)}</th>'
        for title, number in zip(columns, numeric, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(cell(value, column) for column, value in enumerate(row))}</tr>"
        for row in rows
    )
    # A wide table scrolls inside its frame; the frame takes the focus so that arrow keys reach it.
    return (
        f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _data_table(title: str, data: dict[str, list[Any]]) -> str:
    if not data:
        return ""
    rows = list(zip(*data.values(), strict=True))
    shown = f"first {MOST_DATA_ROWS} of {len(rows)} rows" if len(rows) > MOST_DATA_ROWS else ""
    caption = f"Data of: {title}" + (f" ({shown})" if shown else "")
    return (
        f"<details><summary>Data</summary>"
        f"{html_table(caption, list(data), rows[:MOST_DATA_ROWS])}</details>"
    )
