"""The HTML report of a "recovery" result."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from saelab.formats.evaluation_result import EvaluationResult
from saelab.report import Report, figures_of, unit_text

from .definitions import DEFINITIONS

HEADLINES = {
    "frr_080": "Features recovered at cosine 0.8",
    "frr_090": "Features recovered at cosine 0.9",
    "frr_one_to_one_090": "… by a latent of their own",
    "mean_max_cosine_features": "Mean largest cosine of a feature",
    "chance_cosine": "… of random directions",
    "precision_090": "Alive latents that are a feature (0.9)",
    "match_f1": "F1 of matched latents",
    "absorption_rate": "Absorbed share of matched features",
    "split_share": "Matched features that are split",
    "nmse": "Normalised squared error",
    "l0_mean": "L0 (mean)",
    "true_l0": "True features per row",
    "dead_fraction": "Dead fraction",
}


def write_report(path: Path, result: EvaluationResult) -> Path:
    """Write the report of a result: the numbers that matter, figures, every number defined."""
    origin, settings = result.made_from, result.settings
    planted = origin["planted"]
    report = Report(
        f"Recovery by {result.dictionary_name}",
        f"{origin['architecture']}, {origin['d_sae']:,} latents, trained on {origin['model']}: "
        f"{planted['n_features']:,} features planted in {planted['d_in']:,} dimensions. "
        f"{settings['n_rows']:,} held-out rows. Dictionary {result.dictionary_hash[:12]}.",
    )
    by_name = {metric.name: metric for metric in result.metrics}
    report.add_heading("In short")
    report.add_table(
        "Headline numbers; all numbers and their definitions are at the end",
        ["metric", "value", "unit"],
        [
            [label, by_name[name].value, unit_text(by_name[name].unit)]
            for name, label in HEADLINES.items()
        ],
    )
    report.add_heading("Figures").add_figures(figures_of(result))
    report.add_heading("Every number and its definition")
    for group, members in groupby(result.metrics, lambda metric: DEFINITIONS[metric.name].group):
        report.add_metrics(group, list(members))
    report.add_heading("Settings")
    report.add_table(
        "What was planted, what was trained, and how it was judged",
        ["setting", "value"],
        [
            *([f"planted {name}", _setting(value)] for name, value in planted.items()),
            *([f"training {name}", _setting(v)] for name, v in origin["training"].items()),
            *([name, _setting(value)] for name, value in settings.items()),
        ],
    )
    return report.write(path)


def _setting(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_setting(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(str(_setting(inner)) for inner in value)
    return "none" if value is None else value
