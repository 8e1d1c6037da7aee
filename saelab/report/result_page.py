"""The HTML page of any evaluation result, drawn from the result alone."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from saelab.formats.evaluation_result import EvaluationResult

from .draw import draw
from .page import Report, unit_text

MOST_NUMBERS = 300
"""Numbers of a group that a page lists; of more, it shows one for each definition."""


def write_result_page(path: Path, result: EvaluationResult) -> Path:
    """Write the page of a result: the numbers that matter, charts, tables, every definition."""
    subtitle = " ".join([result.subtitle, f"Dictionary {result.dictionary_hash[:12]}."]).strip()
    report = Report(result.title or f"{result.suite} of {result.dictionary_name}", subtitle)
    for note in result.notes:
        report.add_text(note)
    by_name = {metric.name: metric for metric in result.metrics}
    if result.headline:
        rows = [
            [name.replace("_", " "), by_name[name].value, unit_text(by_name[name].unit)]
            for name in result.headline
        ]
        report.add_heading("In short").add_table(
            "Headline numbers; all numbers and their definitions are at the end",
            ["number", "value", "unit"],
            rows,
        )
    for section, charts in groupby(result.charts, lambda chart: chart.section):
        report.add_heading(section).add_figures([draw(chart) for chart in charts])
    for section, tables in groupby(result.tables, lambda table: table.section):
        report.add_heading(section)
        for table in tables:
            report.add_table(table.title, table.columns, table.rows)
    report.add_heading("Every number and its definition")
    for group, metrics in groupby(result.metrics, lambda metric: metric.group):
        numbers = list(metrics)
        kinds = list({metric.definition: metric for metric in reversed(numbers)}.values())[::-1]
        if len(numbers) > MOST_NUMBERS and len(kinds) < len(numbers):
            group = f"{group}: {len(numbers):,} numbers, one of each kind; the JSON has them all"
            numbers = kinds
        report.add_metrics(group, numbers)
    report.add_heading("Settings").add_table(
        "What decided the numbers",
        ["setting", "value"],
        [[name, _setting(value)] for name, value in result.settings.items()],
    )
    return report.write(path)


def _setting(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else value
