"""Evals: evaluations of a dictionary and comparisons of methods, drawn from the results alone."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import streamlit as st

from saelab.formats.evaluation_result import EvaluationResult, read_evaluation_result
from saelab.formats.files import read_json, sha256_of
from saelab.formats.manifest import ITEM_HASHES
from saelab.report.draw import draw
from saelab.report.page import unit_text
from saelab.report.result_page import settings_rows

from .. import url_state
from ..context import chosen_dictionary, run_index
from ..run_index import DictionaryEntry, once_per_state, plain_file
from ..widgets.html_tables import page_table
from ..widgets.page_parts import plain, run_page, show_figures, show_note, show_problem

COMPARE = "comparison "
MOST_ROWS = 300


def render() -> None:
    """Draw the page."""
    st.title("Evals")
    entry = chosen_dictionary()
    results = {} if entry is None else dict(entry.evaluations)
    comparisons = run_index().comparisons
    # Core, which says what a dictionary is worth, comes first.
    suites = sorted(results, key=lambda suite: (suite != "core", suite))
    options = [*suites, *(COMPARE + name for name in comparisons)]
    if not options:
        where = "RUN" if entry is None or entry.folder is None else str(entry.folder)
        show_note(
            "No evaluation lies beside this dictionary, and no comparison below the folders given: "
            f"make one with `saelab eval core {where}`, then reload this page."
        )
        return
    if not results and entry is not None:
        show_note(
            f"{entry.name} has no evaluation yet: `saelab eval core {entry.folder or 'RUN'}` makes "
            "the first. Comparisons of methods are below."
        )
    choice = url_state.choice(
        st.radio,
        "Evaluation",
        {name: plain(name.replace("_", " ")) for name in options},
        param="suite",
        horizontal=True,
    )
    if choice.startswith(COMPARE):
        _draw_result(comparisons[choice.removeprefix(COMPARE)], None)
    elif entry is not None:
        _draw_result(results[choice], entry)


@once_per_state(64)
def _result(path: Path) -> EvaluationResult:
    # Rows are checked where they are shown: without them there are still the numbers.
    return read_evaluation_result(path, check_files=False)


def _draw_result(path: Path, entry: DictionaryEntry | None) -> None:
    """Where a result is from, its charts and tables, every number with its definition.

    Args:
        entry: the dictionary it should be about; None where it is about several.
    """
    result = _result(path)
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
            st.html(page_table(table.title, table.columns, table.rows))
            if table.note:
                st.caption(plain(table.note))
    if result.metrics:
        _draw_metrics(result)
    with st.expander("Settings and origin"):
        for title, content in (("Settings", result.settings), ("Made from", result.made_from)):
            st.html(page_table(title, ["name", "value"], settings_rows(content)))
    _draw_files(path, result)


def _origin(result: EvaluationResult) -> str:
    origin = result.made_from
    where = f" at {origin['hook_point']} of {origin['model']}" if "hook_point" in origin else ""
    where += f", {result.created.replace('T', ' ')[:16]} UTC" if result.created else ""
    where += f", seed {result.seed}" if result.seed is not None else ""
    return f"Suite {result.suite} on {result.dictionary_name}{where}. {result.subtitle}".strip()


def _draw_metrics(result: EvaluationResult) -> None:
    st.subheader("Every number and its definition")
    query = url_state.widget(
        st.text_input, "Find a number", param="find", default="", placeholder="a word of its name"
    )
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
        rows = [[m.name, m.value, unit_text(m.unit), m.definition] for m in members]
        st.html(page_table(name, ["number", "value", "unit", "definition"], rows, "defined"))


_sha256 = once_per_state(64)(sha256_of)


def _draw_files(path: Path, result: EvaluationResult) -> None:
    hashes = read_json(path).get(ITEM_HASHES, {})
    for items, name in result.item_files.items():
        file = plain_file(path.with_name(name))
        if file and file.suffix == ".parquet":
            with st.expander(f"Rows: {plain(items)}"):
                _draw_rows(file, items, hashes.get(name))
    report = plain_file(path.with_suffix(".html"))
    files = [path] if report is None else [path, report]
    for column, file in zip(st.columns(4), files, strict=False):
        _offer(column.download_button, f"Download {plain(file.name)}", file)


def _offer(button: Callable[..., Any], label: str, file: Path) -> None:
    key = f"evals_file_{file.name}"
    button(label, file.read_bytes, file_name=file.name, key=key, on_click="ignore")


def _draw_rows(file: Path, items: str, sha256: str | None) -> None:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(file)
    except (ArrowException, OSError) as error:
        show_problem(f"{file} cannot be read ({str(error).splitlines()[0]}): evaluate again.")
        return
    if sha256 is not None and _sha256(file) != sha256:
        show_problem(f"{file} was changed since it was written: evaluate again with --overwrite.")
        return
    st.dataframe(
        table.slice(0, MOST_ROWS).to_pydict(),
        hide_index=True,
        alt=f"The first {min(MOST_ROWS, table.num_rows)} of {table.num_rows:,} {items}",
        key=f"evals_rows_{items}",
    )
    st.caption(f"The first {min(MOST_ROWS, table.num_rows):,} of {table.num_rows:,} rows.")
    _offer(st.download_button, "Download all rows (parquet)", file)


if __name__ == "__main__":
    run_page(render)
