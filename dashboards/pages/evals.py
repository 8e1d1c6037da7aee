"""Evals: every evaluation of a dictionary as its report's figures, and comparisons of methods."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import streamlit as st

from saelab.dashboards import url_state
from saelab.dashboards.comparisons import (
    Comparison,
    comparison_table,
    definition_rows,
    find_comparisons,
    read_comparison,
)
from saelab.dashboards.context import SECONDS_BETWEEN_SCANS, chosen_dictionary, roots_given
from saelab.dashboards.run_index import DictionaryEntry
from saelab.dashboards.widgets.html_tables import plain_table
from saelab.dashboards.widgets.page_parts import (
    plain,
    run_page,
    show_figures,
    show_note,
    show_problem,
)
from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import EvaluationResult, read_evaluation_result
from saelab.report.page import format_value, unit_text
from saelab.report.registry import FIGURES, figures_of
from saelab.stats.metric_definitions import METRICS

COMPARE = "comparison "
MOST_ROWS = 300


def render() -> None:
    """Draw the page."""
    st.title("Evals")
    entry = chosen_dictionary()
    found = {} if entry is None else dict(entry.evaluations)
    comparisons = _comparisons(tuple(roots_given()))
    options = [*_in_order(list(found)), *(COMPARE + name for name in comparisons)]
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
        draw_comparison(comparisons[choice.removeprefix(COMPARE)])
    elif entry is not None:
        draw_result(found[choice], entry)


def _in_order(suites: list[str]) -> list[str]:
    """Suites in the order of the registry, unknown ones last."""
    known = list(FIGURES)
    return sorted(suites, key=lambda suite: (known.index(suite) if suite in known else 99, suite))


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


def draw_result(path: Path, entry: DictionaryEntry) -> None:
    """One result: where it is from, its figures, every number with its definition."""
    result = _read(path)
    if entry.content_hash is not None and result.dictionary_hash != entry.content_hash:
        show_problem(
            "This result was measured on another dictionary (content hash "
            f"{result.dictionary_hash[:12]}…, here {entry.content_hash[:12]}…): evaluate again "
            "with --overwrite."
        )
    st.caption(plain(_origin(result)))
    try:
        figures = figures_of(result)
    except ArtifactError as error:
        show_problem(f"{error}. Its numbers are below.")
        figures = []
    if result.suite not in FIGURES:
        show_note(
            f"This saelab has no figures for the suite {result.suite!r}; its numbers are below."
        )
    show_figures(figures, f"evals_{result.suite}")
    draw_metrics(result)
    draw_settings(result)
    draw_files(path, result)


def _read(path: Path) -> EvaluationResult:
    try:
        state = path.stat()
    except OSError:
        return read_evaluation_result(path)
    return _parsed(path, state.st_mtime_ns, state.st_size)


@st.cache_resource(max_entries=64, show_spinner=False)
def _parsed(path: Path, modified: int, size: int) -> EvaluationResult:  # noqa: ARG001
    return read_evaluation_result(path)


def _origin(result: EvaluationResult) -> str:
    origin = result.made_from
    where = f" at {origin['hook_point']} of {origin['model']}" if "hook_point" in origin else ""
    made = f", {result.created.replace('T', ' ')[:16]} UTC" if result.created else ""
    seed = f", seed {result.seed}" if result.seed is not None else ""
    return f"Suite {result.suite} on {result.dictionary_name}{where}{made}{seed}."


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

    def group(metric: Any) -> str:
        return METRICS[metric.name].group if metric.name in METRICS else "Numbers"

    for name, members in groupby(metrics, group):
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


def draw_comparison(path: Path) -> None:
    """A comparison of training methods: its figures, its table, its definitions."""
    comparison: Comparison = read_comparison(path)
    st.caption(plain(comparison.title))
    for note in comparison.notes:
        show_note(note)
    try:
        show_figures(comparison.figures(), "comparison")
    except ArtifactError as error:
        show_problem(f"{error}. Its numbers are below.")
    st.subheader("Numbers")
    headings, rows = comparison_table(comparison)
    st.html(plain_table(comparison.spread, headings, rows, numeric=range(1, len(headings))))
    st.subheader("What every number means")
    st.html(
        plain_table(
            "Units and definitions",
            ["number", "unit", "definition"],
            definition_rows(comparison),
            numeric=[],
        )
    )


if __name__ == "__main__":
    run_page(render)
