"""The curves of a run: block characters for the terminal, a page of plots for the browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from saelab.formats.run_log import read_log
from saelab.report.figure import BLUE, GREEN, ORANGE, PURPLE, Figure, new_plot
from saelab.report.page import Report
from saelab.report.training_figures import CURVE_KINDS

from .run_folder import METRICS_FILE, PAGE_FILE

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
DASHES = ("solid", "dash", "dot", "dashdot")
BLOCKS = "▁▂▃▄▅▆▇█"

CURVES = ("loss", "fvu", "l0", "dead_fraction", "density_q10", "density_q50", "density_q90")
"""What is drawn, where it is logged, in reading order."""


@dataclass(frozen=True)
class Curves:
    """What was drawn."""

    losses: dict[str, list[float]]
    """The loss at every logged step, by dictionary."""
    page: Path
    """The HTML page."""


def write_curves(run: Path) -> Curves:
    """Draw the metrics of a run as an HTML page in its folder."""
    lines = read_log(run / METRICS_FILE)
    names = list(dict.fromkeys(line["dictionary"] for line in lines))
    of_name = {name: [line for line in lines if line["dictionary"] == name] for name in names}
    report = Report(f"Training of {run.resolve().name}", "Every dictionary of the run.")
    report.add_heading("Figures")
    for key in CURVES:
        kind = CURVE_KINDS[key]
        curves = {
            # A number that a batch left undefined, such as FVU of equal rows, is no point.
            name: [
                (line["tokens"], line[key]) for line in of_name[name] if line.get(key) is not None
            ]
            for name in names
        }
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            ends = [f"{name} ends at {points[-1][1]:.4g}" for name, points in curves.items()]
            figure = Figure(
                name=key,
                title=kind.title,
                plot=_plot(curves, kind.axis, kind.scale),
                caption=kind.caption,
                alt="; ".join(ends),
                data=_columns(curves, kind.axis),
            )
            report.add_figures([figure])
    page = report.write(run / PAGE_FILE)
    losses = {name: [line["loss"] for line in of_name[name] if "loss" in line] for name in names}
    return Curves(losses, page)


def _plot(curves: dict[str, list[tuple[int, float]]], axis: str, scale: str) -> go.Figure:
    plot = new_plot("tokens (rows) trained on", axis, type=scale)
    for place, (name, points) in enumerate(curves.items()):
        plot.add_scatter(
            x=[tokens for tokens, _ in points],
            y=[value for _, value in points],
            name=name,
            mode="lines",
            line={
                "color": COLOURS[place % len(COLOURS)],
                "dash": DASHES[place // len(COLOURS) % 4],
            },
        )
    if len(curves) > 1:
        plot.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.3}, height=440)
    return plot


def _columns(curves: dict[str, list[tuple[int, float]]], axis: str) -> dict[str, list[Any]]:
    rows = [(name, *point) for name, points in curves.items() for point in points]
    names, tokens, values = zip(*rows, strict=True)
    return {"dictionary": list(names), "tokens": list(tokens), axis: list(values)}


def sparkline(values: list[float], width: int = 32) -> str:
    """A curve as block characters, from its lowest value to its highest.

    Example:
        >>> sparkline([4.0, 2.0, 1.0, 1.0])
        '█▃▁▁'
    """
    if not values:
        return ""
    step = max(1.0, len(values) / width)
    picked = [values[int(index * step)] for index in range(min(width, len(values)))]
    low, high = min(picked), max(picked)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in picked)
