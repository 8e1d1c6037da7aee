"""The HTML report of a "core" result."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from saelab.formats.evaluation_result import EvaluationResult
from saelab.report import Report, figures_of, unit_text
from saelab.report.mode_figures import MODE_FIGURES
from saelab.stats.metrics import METRICS

from .modes_result import add_modes_section

HEADLINES = {
    "fvu": "FVU",
    "explained_variance": "Explained variance",
    "l0_mean": "L0 (mean)",
    "loss_recovered_zero": "Loss recovered against zero ablation",
    "loss_recovered_mean": "Loss recovered against mean ablation",
    "kl": "KL (clean || spliced)",
    "dead_fraction": "Dead fraction",
}


def write_report(path: Path, result: EvaluationResult) -> Path:
    """Write the report of a result: the numbers that matter, figures, every number defined."""
    origin, settings = result.made_from, result.settings
    report = Report(
        f"Core evaluation of {result.dictionary_name}",
        f"{origin['architecture']}, {origin['d_sae']:,} latents, at {origin['hook_point']} of "
        f"{origin['model']}. Held-out part of {settings['text']['source']}, contexts of "
        f"{settings['context_length']} tokens. Dictionary {result.dictionary_hash[:12]}.",
    )
    by_name = {metric.name: metric for metric in result.metrics}
    report.add_heading("In short")
    report.add_table(
        "Headline numbers; all numbers and their definitions are at the end",
        ["metric", "value", "unit"],
        [
            [label, by_name[name].value, unit_text(by_name[name].unit)]
            for name, label in HEADLINES.items()
            if name in by_name
        ],
    )
    plain = [figure for figure in figures_of(result) if figure.name not in MODE_FIGURES]
    report.add_heading("Figures").add_figures(plain)
    add_modes_section(report, result)
    report.add_heading("Every number and its definition")
    for group, members in groupby(result.metrics, lambda metric: METRICS[metric.name].group):
        report.add_metrics(group, list(members))
    report.add_heading("Settings").add_table(
        "What decided the numbers",
        ["setting", "value"],
        [[name, _setting(value)] for name, value in settings.items()],
    )
    return report.write(path)


def _setting(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return "none" if value is None else value
