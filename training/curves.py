"""The curves of a run: block characters for the terminal, a page of plots for the browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saelab.report import Report
from saelab.run_log import read_log

from .run_folder import METRICS_FILE, PAGE_FILE

BLOCKS = "▁▂▃▄▅▆▇█"

CURVES = {
    "loss": ("Training loss", "loss, all terms (share of variance)", "log"),
    "fvu": ("Fraction of variance unexplained (FVU)", "FVU", "log"),
    "l0": ("Active latents per token (L0)", "latents per token", "linear"),
    "dead_fraction": ("Dead latents", "share of latents", "linear"),
}
CAPTIONS = {
    "loss": "Sum of the method's loss terms on each logged batch, in normalised units.",
    "fvu": "Σ‖x − x̂‖² / Σ‖x − mean‖² on each logged training batch, against the batch's own mean.",
    "l0": "Mean number of positive codes per token on each logged batch.",
    "dead_fraction": "Latents without a positive code for the method's `dead_after_tokens`.",
}


@dataclass(frozen=True)
class Curves:
    """What was drawn."""

    losses: dict[str, list[float]]
    """The loss at every logged step, by dictionary."""
    page: Path
    """The HTML page."""


def write_curves(run: Path) -> Curves:
    """Draw the metrics of a run as an HTML page in its folder."""
    import plotly.graph_objects as go

    lines = read_log(run / METRICS_FILE)
    names = list(dict.fromkeys(line["dictionary"] for line in lines))
    report = Report(f"Training: {run.name}", "Curves of every dictionary of the run.")
    for key, (title, axis, scale) in CURVES.items():
        plot = go.Figure()
        ends = []
        for name in names:
            own = [line for line in lines if line["dictionary"] == name and key in line]
            if not own:
                continue
            plot.add_scatter(
                x=[line["tokens"] for line in own], y=[line[key] for line in own], name=name
            )
            ends.append(f"{name} ends at {own[-1][key]:.4g}")
        if not ends:
            continue
        plot.update_layout(xaxis_title="tokens (rows) trained on", yaxis_title=axis)
        plot.update_yaxes(type=scale)
        report.add_figure(plot, CAPTIONS[key], "; ".join(ends), title=title)
    page = report.write(run / PAGE_FILE)
    losses = {
        name: [line["loss"] for line in lines if line["dictionary"] == name] for name in names
    }
    return Curves(losses, page)


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
