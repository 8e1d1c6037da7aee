"""The curves of a run: block characters for the terminal, a page of plots for the browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saelab.formats.run_log import read_history
from saelab.report.page import Report
from saelab.report.training_figures import CURVE_KINDS, training_figure

from .run_folder import METRICS_FILE, PAGE_FILE

BLOCKS = "▁▂▃▄▅▆▇█"


def write_curves(run: Path) -> tuple[Path, dict[str, Sequence[float]]]:
    """Draw the metrics of a run as an HTML page in its folder.

    Returns:
        The page, and the loss at every logged step by dictionary.
    """
    curves = read_history(run / METRICS_FILE).curves
    report = Report(f"Training of {run.resolve().name}", "Every dictionary of the run.")
    report.add_heading("Figures")
    figures = [
        training_figure(
            number, {name: of[number] for name, of in curves.items() if number in of}, list(curves)
        )
        for number in CURVE_KINDS
        if number != "tokens_per_second"
    ]
    report.add_figures([figure for figure in figures if figure is not None])
    return report.write(run / PAGE_FILE), {name: of["loss"].values for name, of in curves.items()}


def sparkline(values: Sequence[float], width: int = 32) -> str:
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
