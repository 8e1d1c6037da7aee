"""What the figures of a comparison share: ranges, error bars, legends, words."""

from __future__ import annotations

from typing import Any

from .figure import BLUE, GREEN, ORANGE, PURPLE

SPREAD = "error bars: standard deviation over seeds (none for a single seed)"
L0_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


def width_suffix(data: dict[str, Any]) -> str:
    """Names the width in a title where the page has several."""
    return f", {data['d_sae']:,} latents" if data["many_widths"] else ""


def error_bars(deviations: list[float | None], colour: str) -> dict[str, Any]:
    """Error bars, none where there is no deviation."""
    return {
        "type": "data",
        "array": [value or 0 for value in deviations],
        "color": colour,
        "thickness": 1.25,
        "width": 3,
        "visible": any(deviations),
    }


def reach(
    parts: list[dict[str, Any]], value: str, deviation: str, also: list[float] | None = None
) -> list[float]:
    """Everything that an axis must show: values and the ends of their error bars."""
    ends = list(also or [])
    for part in parts:
        values, deviations = part[value], part[deviation]
        if not isinstance(values, list):
            values, deviations = [values], [deviations]
        for one, sd in zip(values, deviations, strict=True):
            if one is not None:
                ends += [one - (sd or 0), one + (sd or 0)]
    return ends


def padded(ends: list[float]) -> tuple[float, float]:
    """A range around some values."""
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def legend_below(plot: Any, height: int) -> None:
    """Show the legend above the plot, and give the plot a height in pixels."""
    plot.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        height=max(340, height),
    )
