"""An evaluation suite on the command line: its words read, its results shown as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import IN_SHORT, EvaluationResult, Table

from .suite import CONTROLS, Suite, evaluate


def run_command(suite: Suite[Any], arguments: Sequence[str], program: str = "") -> None:
    """Run a suite with the words after `saelab eval SUITE`, or after `program`; show its table.

    Raises:
        SaelabError: whatever the user can put right.
    """
    program = program or f"saelab eval {suite.name}"
    command: Any = parse_arguments(suite.command(), arguments, program=program)
    if suite.needs_dictionaries and not command.dictionaries:
        raise ConfigError(f"no dictionary was given: type `{program} FOLDER [FOLDER …]`")
    lines = None if suite.action is None else suite.action(command)
    if lines is not None:
        from rich.console import Console

        for line in lines:
            Console().print(line, soft_wrap=True, highlight=False)
        return
    results = evaluate(suite, command.dictionaries, command.config)
    show(suite, results)
    if suite.finish is not None:
        suite.finish([result for _, result in results], command.config)


def show(suite: Suite[Any], results: Sequence[tuple[Path, EvaluationResult]]) -> None:
    """Print one line per dictionary, or the tables in short; notes, and where the reports are."""
    from rich.console import Console

    console = Console()
    named = {metric.name for _, result in results for metric in result.metrics}
    shown = {name: label for name, label in suite.shown.items() if name in named}
    names = _told_apart(results)
    rows = [
        [label, *(_with_interval(_values(result), name) for name in shown)]
        for label, (_, result) in zip(names, results, strict=True)
        if any(name in _values(result) for name in shown)
    ]
    if shown:
        console.print(terminal_table("", ["dictionary", *shown.values()], rows))
    else:
        for label, (_, result) in zip(names, results, strict=True):
            in_short = [table for table in result.tables if table.section == IN_SHORT]
            for table in in_short or result.tables[:1]:
                # Headings that are broken into lines by hand are narrow enough for a terminal.
                rigid = any("\n" in column for column in table.columns)
                console.print(terminal_table(label, table.columns, table.rows, rigid=rigid))
                if table.note:
                    console.print(table.note, highlight=False)
    for label, (_, result) in zip(names, results, strict=True):
        for table in (table for table in result.tables if table.section == CONTROLS):
            columns, rows = best_of_controls(table)
            console.print(terminal_table(f"{label} beside controls", columns, rows))
    for note in dict.fromkeys(note for _, result in results for note in result.notes):
        console.print(note, highlight=False)
    for path, _ in results:
        console.print(f"report: {path.with_suffix('.html')}", soft_wrap=True, highlight=False)


def best_of_controls(table: Table) -> tuple[list[str], list[list[Any]]]:
    """The table of controls with the best of them alone, which a terminal has room for."""
    rows = []
    for name, better, trained, *controls, best, share in table.rows:
        known = [value for value in controls if value is not None]
        extreme = max if better == "higher" else min
        control = extreme(known) if known else None
        named = table.columns[3 + controls.index(control)] if known else ""
        rows.append([name, trained, control, named, best, share])
    return ["number", "trained", "control", "", "best possible", "share of the way"], rows


def _told_apart(results: Sequence[tuple[Path, EvaluationResult]]) -> list[str]:
    """The dictionaries' names; those of one name with their hook point and folder, as they differ.

    Runs of one recipe at other hook points name their dictionaries alike.
    """
    labels = [result.dictionary_name for _, result in results]
    for index, label in enumerate(labels):
        alike = [i for i, (_, measured) in enumerate(results) if measured.dictionary_name == label]
        parts = [
            [str(results[i][1].made_from.get("hook_point", "")) for i in alike],
            _different_folders([results[i][0] for i in alike]),
        ]
        different = [part[alike.index(index)] for part in parts if len(set(part)) > 1]
        labels[index] = " ".join([label, *filter(None, different)])
    return labels


def _different_folders(paths: Sequence[Path]) -> list[str]:
    """Of each path, its parts that the paths do not share."""
    parts = [path.absolute().parts for path in paths]
    shared = set(parts[0]).intersection(*parts)
    return ["/".join(part for part in each if part not in shared) for each in parts]


def _values(result: EvaluationResult) -> dict[str, Any]:
    return {metric.name: metric.value for metric in result.metrics}


def _with_interval(values: dict[str, Any], name: str) -> Any:
    """A number, and under it its interval where the suite has one."""
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    if low is None or high is None or values[name] is None:
        return values.get(name)
    return f"{_short(values[name])}\n{low:.3f}–{high:.3f}"


def terminal_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, rigid: bool = False
) -> Any:
    """A table for `rich` to print: the first column names its row, numbers are right-aligned.

    `rigid`: only the first column may be folded where the terminal is narrow.
    """
    from rich import box
    from rich.table import Table as Lines

    lines = Lines(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, label in enumerate(columns):
        justify, no_wrap = ("right", rigid) if index else ("left", False)
        lines.add_column(label, overflow="fold", justify=justify, no_wrap=no_wrap)
    for first, *values in rows:
        cells = ["undefined" if value is None else _short(value) for value in values]
        lines.add_row(str(first), *cells)
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
