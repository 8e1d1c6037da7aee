"""Up to twelve lines that can be told apart, and where the names beside their ends go.

Six colours, each with a solid and a dashed line, and a marker of its own for each of the twelve:
none of the three is needed to tell two lines apart if the other two are not seen. All colours keep
3:1 on the light and the dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from saelab.formats.chart import Number

from .figure import BLUE, GREEN, ORANGE, PURPLE

ROSE, GREY = "#cc4f6b", "#808791"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, ROSE, GREY)
DASHES = ("solid", "dash")
MARKERS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "triangle-down",
    "cross",
    "circle-open",
    "square-open",
    "diamond-open",
    "triangle-up-open",
    "triangle-down-open",
    "x",
)
LONGEST_NAME = 26


class LineStyle(NamedTuple):
    """How a line and its points are drawn."""

    colour: str
    dash: str
    marker: str

    def points(self, size: int = 9) -> dict[str, Any]:
        """The markers, as plotly takes them."""
        return {
            "color": self.colour,
            "symbol": self.marker,
            "size": size,
            "line": {"color": self.colour, "width": 1.5},
        }


def line_style(index: int) -> LineStyle:
    """The style of an index; styles repeat after twelve."""
    index %= len(MARKERS)
    return LineStyle(COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS)], MARKERS[index])


def short_name(name: str) -> str:
    """A name that fits beside a plot; what is cut off is in the table."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def spread_apart(
    wanted: Sequence[float | int], gap: float, low: float | int, high: float | int
) -> list[Number]:
    """Heights at least `gap` apart, as near as can be to the wanted ones, between two bounds.

    Least squares, by pooling neighbours that would overlap. Where they do not all fit between the
    bounds, they stand at equal distances over the whole range.
    """
    if len(wanted) * gap > high - low + gap:
        gap = (high - low) / max(1, len(wanted) - 1)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        blocks.append((wanted[index] - rank * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (below, n), (above, m) = blocks[-2:]
            blocks[-2:] = [((below * n + above * m) / (n + m), n + m)]
    starts = [mean for mean, count in blocks for _ in range(count)]
    top = high - (len(wanted) - 1) * gap
    heights = [0.0] * len(wanted)
    for rank, (index, start) in enumerate(zip(order, starts, strict=True)):
        heights[index] = min(max(start, low), max(top, low)) + rank * gap
    return heights
