"""Evals: evaluations of a dictionary and comparisons of methods, drawn from the results alone."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import streamlit as st

from saelab.formats.evaluation_result import (
    COMPARISON_FILE,
    EvaluationResult,
    read_comparison,
    read_evaluation_result,
)
from saelab.report.draw import draw
from saelab.report.page import format_value, unit_text

from .. import url_state
from ..context import SECONDS_BETWEEN_SCANS, chosen_dictionary, roots_given
from ..run_index import DictionaryEntry, walk
from ..widgets.html_tables import plain_table
from ..widgets.page_parts import (
    plain,
    run_page,
    show_figures,
    show_note,
    show_problem,
)

COMPARE = "comparison "
MOST_ROWS = 300


def render() -> None:
    """Draw the page."""
    st.title("Evals")
    entry = chosen_dictionary()
    found = {} if entry is None else dict(entry.evaluations)
    comparisons = _comparisons(tuple(roots_given()))
    options = [*sorted(found, key=_order), *(COMPARE + name for name in comparisons)]
    if not options:
        where = "RUN" if entry is None or entry.folder is None else str(entry.folder)
        show_note(
            "No evaluation lies beside this dictionary, and no comparison below the folders given: "
            f"make one with `saelab eval core {where}`, then reload this page."
        )
        return
    if not found and entry is not None:
        show_note(
            f"{entry.name} has no evaluation yet: `saelab eval core {entry.folder or 'RUN'}` makes "
            "the first. Comparisons of methods are below."
        )
    choice = _choose(options)
    if choice.startswith(COMPARE):
        draw_result(comparisons[choice.removeprefix(COMPARE)], None)
    elif entry is not None:
        draw_result(found[choice], entry)


def _order(suite: str) -> tuple[bool, str]:
    """Core, which says what a dictionary is worth, comes first."""
    return suite != "core", suite


def _choose(options: list[str]) -> str:
    if st.session_state.get("evals_suite") not in [None, *options]:
        del st.session_state["evals_suite"]
    url_state.bind("evals_suite", "suite", options[0], url_state.one_of(*options))
    choice = st.radio(
        "Evaluation",
        options,
        key="evals_suite",
        horizontal=True,
        format_func=lambda name: plain(name.replace("_", " ")),
    )
    url_state.publish("suite", choice, options[0])
    return choice


@st.cache_resource(ttl=SECONDS_BETWEEN_SCANS, show_spinner=False, max_entries=4)
def _comparisons(roots: tuple[Path, ...]) -> dict[str, Path]:
    return find_comparisons(roots)


def find_comparisons(roots: Sequence[Path]) -> dict[str, Path]:
    """Files of comparisons by name: the folder given, and the way from there."""
    named = {}
    for root in (Path(root).resolve() for root in roots):
        for folder, names in walk(root, []):
            if COMPARISON_FILE in names:
                way = folder.relative_to(root).as_posix()
                name = root.name if way == "." else f"{root.name}/{way}"
                named[name] = folder / COMPARISON_FILE
    return named


def draw_result(path: Path, entry: DictionaryEntry | None) -> None:
    """One result: where it is from, its charts and tables, every number with its definition.

    Args:
        path: its file.
        entry: the dictionary it should be about; None where it is about several.
    """
    result = _read(path)
    known = None if entry is None else entry.content_hash
    if known is not None and result.dictionary_hash != known:
        show_problem(
            "This result was measured on another dictionary (content hash "
            f"{result.dictionary_hash[:12]}…, here {known[:12]}…): evaluate again with --overwrite."
        )
    st.caption(plain(_origin(result)))
    for note in result.notes:
        show_note(note)
    try:
        figures = [draw(chart) for chart in result.charts]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        show_problem(
            f"A chart of {path} cannot be drawn from its data ({error!r}): the file was edited; "
            "evaluate again with --overwrite. Its numbers are below."
        )
        figures = []
    show_figures(figures, f"evals_{result.suite}")
    for section, tables in groupby(result.tables, lambda table: table.section):
        st.subheader(section)
        for table in tables:
            rows = [[format_value(cell) for cell in row] for row in table.rows]
            numeric = range(1, len(table.columns)) if _is_numeric(table.rows) else []
            st.html(plain_table(table.title, table.columns, rows, numeric=numeric))
    if result.metrics:
        draw_metrics(result)
    draw_settings(result)
    draw_files(path, result)


def _is_numeric(rows: Sequence[Sequence[Any]]) -> bool:
    return any(isinstance(cell, int | float) for row in rows for cell in row[1:])


def _read(path: Path) -> EvaluationResult:
    try:
        state = path.stat()
    except OSError:
        return read_evaluation_result(path)
    return _parsed(path, state.st_mtime_ns, state.st_size)


@st.cache_resource(max_entries=64, show_spinner=False)
def _parsed(path: Path, modified: int, size: int) -> EvaluationResult:  # noqa: ARG001
    return (
        read_comparison(path)[0] if path.name == COMPARISON_FILE else read_evaluation_result(path)
    )


def _origin(result: EvaluationResult) -> str:
    origin = result.made_from
    where = f" at {origin['hook_point']} of {origin['model']}" if "hook_point" in origin else ""
    made = f", {result.created.replace('T', ' ')[:16]} UTC" if result.created else ""
    seed = f", seed {result.seed}" if result.seed is not None else ""
    about = f"Suite {result.suite} on {result.dictionary_name}{where}{made}{seed}."
    return f"{about} {result.subtitle}".strip()


def draw_metrics(result: EvaluationResult) -> None:
    """Every number of a result with unit and definition, by group."""
    st.subheader("Every number and its definition")
    url_state.bind("evals_find", "find", "")
    query = st.text_input("Find a number", key="evals_find", placeholder="a word of its name")
    url_state.publish("find", query, "")
    wanted = query.strip().casefold()
    metrics = [
        metric
        for metric in result.metrics
        if wanted in f"{metric.name} {metric.definition}".casefold().replace("_", " ")
        or wanted in metric.name.casefold()
    ]
    if not metrics:
        show_note("No number has this word in its name or definition.")

    for name, members in groupby(metrics, lambda metric: metric.group):
        rows = [[m.name, format_value(m.value), unit_text(m.unit), m.definition] for m in members]
        st.html(plain_table(name, ["number", "value", "unit", "definition"], rows, numeric=[1]))


def draw_settings(result: EvaluationResult) -> None:
    """What decided the numbers."""
    with st.expander("Settings and origin"):
        for title, content in (("Settings", result.settings), ("Made from", result.made_from)):
            rows = [[str(name), _setting(value)] for name, value in content.items()]
            st.html(plain_table(title, ["name", "value"], rows, numeric=[]))


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return format_value(value) if not isinstance(value, list) else ", ".join(map(str, value))


def draw_files(path: Path, result: EvaluationResult) -> None:
    """The files beside the result, to take away; the rows of each as a table."""
    for items, name in result.item_files.items():
        file = path.with_name(name)
        if file.suffix == ".parquet" and file.is_file() and not file.is_symlink():
            with st.expander(f"Rows: {plain(items)}"):
                _draw_rows(file, items)
    report = path.with_suffix(".html")
    files = [path, *([report] if report.is_file() and not report.is_symlink() else [])]
    for column, file in zip(st.columns(4), files, strict=False):
        column.download_button(
            f"Download {plain(file.name)}",
            lambda file=file: file.read_bytes(),
            file_name=file.name,
            key=f"evals_file_{file.suffix}",
            on_click="ignore",
        )


def _draw_rows(file: Path, items: str) -> None:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(file)
    except (ArrowException, OSError) as error:
        show_problem(f"{file} cannot be read ({str(error).splitlines()[0]}): evaluate again.")
        return
    st.dataframe(
        table.slice(0, MOST_ROWS).to_pydict(),
        hide_index=True,
        alt=f"The first {min(MOST_ROWS, table.num_rows)} of {table.num_rows:,} {items}",
        key=f"evals_rows_{items}",
    )
    st.caption(f"The first {min(MOST_ROWS, table.num_rows):,} of {table.num_rows:,} rows.")
    st.download_button(
        "Download all rows (parquet)",
        file.read_bytes,
        file_name=file.name,
        key=f"evals_rows_file_{items}",
        on_click="ignore",
    )


if __name__ == "__main__":
    run_page(render)
