"""The HTML reports: of one dictionary, and of a family. Pictures first, then every number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelab.formats.evaluation_result import EvaluationResult
from saelab.report import Report, figures_of, unit_text
from saelab.report.dark_matter_family_figures import family_figures

from .definitions import GROUPS, PURSUIT, define
from .family import Family

HEADLINES = {
    "fvu": "FVU",
    "fvu_nonlinear": "FVU of the nonlinear error",
    "error_r_squared": "R² of the error vector (mean over dimensions)",
    "error_explained": "R² of the error vector (pooled)",
    "norm_r_squared": "R² of the squared error norm",
    "l0_mean": "L0",
    "shrinkage_gamma": "Shrinkage gamma",
    "linear_norm_share": "Norm of the linear error, share of the error's",
    "nonlinear_norm_share": "Norm of the nonlinear error, share of the error's",
    "norm_test_nonlinear_error": "Norm-prediction test of the nonlinear error (R²)",
}
SEEN = (
    "The dictionary was trained on these very rows: its errors are smaller than on fresh text, and "
    "what is held out here is held out of the probes only."
)


def write_report(path: Path, result: EvaluationResult) -> Path:
    """Write the report of one dictionary."""
    origin, settings = result.made_from, result.settings
    known = {metric.name: metric for metric in result.metrics}
    report = Report(
        f"Dark matter of {result.dictionary_name}",
        f"{origin['architecture']}, {origin['d_sae']:,} latents, at {origin['hook_point']} of "
        f"{origin['model']}. {_rows_text(origin)}, {known['n_rows'].value:,} rows from position "
        f"{settings['first_position']} on. Dictionary {result.dictionary_hash[:12]}.",
    )
    if origin.get("seen_in_training"):
        report.add_text(SEEN)
    report.add_heading("In short")
    columns = ["metric", "own codes"]
    pursued = any(name.startswith(PURSUIT) for name in known)
    report.add_table(
        "Headline numbers; all numbers and their definitions are at the end",
        [*columns, "pursuit codes"] if pursued else columns,
        [
            [label, known[name].value] + ([_value(known, PURSUIT + name)] if pursued else [])
            for name, label in HEADLINES.items()
            if name in known
        ],
    )
    report.add_heading("Figures").add_figures(figures_of(result))
    _add_numbers(report, result)
    report.add_heading("Settings").add_table(
        "What decided the numbers",
        ["setting", "value"],
        [[name, _setting(value)] for name, value in settings.items()],
    )
    return report.write(path)


def write_family_report(path: Path, family: Family, made_from: Mapping[str, Any]) -> Path:
    """Write the report of a family."""
    members = family.members
    widths = sorted({one.d_sae for one in members})
    report = Report(
        "Dark matter of a family of dictionaries",
        f"{len(members)} dictionaries of {len(widths)} width{'' if len(widths) == 1 else 's'} at "
        f"{made_from['hook_point']} of {made_from['model']}. {_rows_text(made_from)}.",
    )
    if made_from.get("seen_in_training"):
        report.add_text(SEEN)
    for note in family.notes:
        report.add_text(note)
    report.add_heading("Figures").add_figures(family_figures(family.figure_data, str(path)))
    shown = [name for name in HEADLINES if any(name in one.values for one in members)]
    pursued = [
        PURSUIT + name
        for name in ("fvu", "fvu_nonlinear")
        if any(PURSUIT + name in one.values for one in members)
    ]
    report.add_heading("Numbers").add_table(
        "Every dictionary",
        ["dictionary", "latents", *(HEADLINES[name] for name in shown)]
        + [f"{HEADLINES[name.removeprefix(PURSUIT)]}, pursuit codes" for name in pursued],
        [
            [one.name, one.d_sae, *(one.values.get(name) for name in (*shown, *pursued))]
            for one in members
        ],
    )
    report.add_table(
        "What each number is",
        ["number", "unit", "definition"],
        [[HEADLINES[name], unit_text(define(name).unit), define(name).text] for name in shown],
    )
    return report.write(path)


def _add_numbers(report: Report, result: EvaluationResult) -> None:
    report.add_heading("Every number and its definition")
    left = {metric.name: metric for metric in result.metrics}
    for heading, names in GROUPS.items():
        for prefix, words in (("", ""), (PURSUIT, ", with pursuit codes")):
            metrics = [left.pop(prefix + name) for name in names if prefix + name in left]
            if metrics:
                report.add_metrics(heading + words, metrics)
    if left:
        report.add_metrics("Further analyses", list(left.values()))


def _rows_text(origin: Mapping[str, Any]) -> str:
    text = origin.get("text") or {}
    where = "Activation cache of" if origin["rows"] == "activation cache" else "Held-out part of"
    return f"{where} {text.get('source')}, contexts of {origin['context_length']} tokens"


def _value(known: Mapping[str, Any], name: str) -> float | int | None:
    return known[name].value if name in known else None


def _setting(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "none"
    return "none" if value is None else value
