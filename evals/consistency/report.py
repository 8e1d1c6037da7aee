"""The HTML page of a group of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saelab.formats.evaluation_result import EvaluationResult
from saelab.report import Report, figures_of, unit_text


def write_report(path: Path, results: Sequence[EvaluationResult]) -> Path:
    """Write the page of a group from its members' results: numbers, figures, definitions."""
    first = results[0]
    origin, settings = first.made_from, first.settings
    runs = [result.settings["run"] for result in results]
    rows = "no rows: all latents count" if not settings["activity"] else origin["rows"]
    report = Report(
        f"Consistency of {settings['group']}",
        f"{len(results)} {'run' if len(results) == 1 else 'runs'} ({', '.join(runs)}) at "
        f"{origin['hook_point']} of {origin['model']}; latents ranked on {rows}.",
    )
    report.add_heading("In short")
    report.add_table(
        "Every number of every run; definitions are at the end",
        ["metric", *runs, "unit"],
        [
            [
                metric.name,
                *(result.value(metric.name) for result in results),
                unit_text(metric.unit),
            ]
            for metric in first.metrics
        ],
    )
    if len(results) == 1:
        report.add_text(
            "This dictionary has no other run of its kind here; the figures compare it with the "
            "other groups."
        )
    report.add_heading("Figures").add_figures(figures_of(first))
    report.add_heading("Every number and its definition")
    report.add_metrics(f"Of {first.dictionary_name}", list(first.metrics))
    members = zip(runs, results, strict=True)
    report.add_heading("Runs").add_table(
        "What was compared",
        ["run", "dictionary", "content hash"],
        [[run, one.dictionary_name, one.dictionary_hash] for run, one in members],
    )
    return report.write(path)
