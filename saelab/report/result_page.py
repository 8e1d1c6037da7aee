"""The HTML page of any evaluation result, drawn from the result alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from saelab.formats.evaluation_result import IN_SHORT, EvaluationResult, Table

from .draw import draw
from .page import Report, format_value, unit_text

MOST_NUMBERS = 100
"""Numbers of a group that a page lists; of more, it shows one for each definition."""


def write_result_page(path: Path, result: EvaluationResult) -> Path:
    """Write the page of a result: the numbers that matter, charts, tables, every definition."""
    about = f"Dictionary {result.dictionary_hash[:12]}." if result.dictionary_hash else ""
    subtitle = " ".join([result.subtitle, about]).strip()
    report = Report(result.title or f"{result.suite} of {result.dictionary_name}", subtitle)
    for note in result.notes:
        report.add_text(note)
    by_name = {metric.name: metric for metric in result.metrics}
    in_short = [table for table in result.tables if table.section == IN_SHORT]
    if result.headline or in_short:
        report.add_heading(IN_SHORT)
    if result.headline:
        rows = [
            [name.replace("_", " "), by_name[name].value, unit_text(by_name[name].unit)]
            for name in result.headline
        ]
        columns = ["number", "value", "unit"]
        report.add_table(
            "Headline numbers; all numbers and their definitions are at the end", columns, rows
        )
    _add_tables(report, in_short)
    for section in dict.fromkeys(part.section for part in (*result.charts, *result.tables)):
        if section != IN_SHORT:
            report.add_heading(section)
            _add_tables(report, [table for table in result.tables if table.section == section])
            report.add_figures([draw(c) for c in result.charts if c.section == section])
    if result.metrics:
        report.add_heading("Every number and its definition")
    for group, metrics in groupby(result.metrics, lambda metric: metric.group):
        numbers = list(metrics)
        kinds = list({metric.definition: metric for metric in reversed(numbers)}.values())[::-1]
        if len(numbers) > MOST_NUMBERS and len(kinds) < len(numbers):
            group = f"{group}: {len(numbers):,} numbers, one of each kind; the JSON has them all"
            numbers = kinds
        report.add_metrics(group, numbers)
    report.add_heading("Settings").add_table(
        "What decided the numbers", ["setting", "value"], settings_rows(result.settings)
    )
    return report.write(path)


def _add_tables(report: Report, tables: Sequence[Table]) -> None:
    for table in tables:
        if table.note:
            report.add_text(table.note)
        report.add_table(table.title, table.columns, table.rows)


def settings_rows(settings: Mapping[str, Any]) -> list[list[str]]:
    """A row for each setting of a result, for a table."""
    return [
        [name, "none" if value is None else format_value(value)] for name, value in settings.items()
    ]
