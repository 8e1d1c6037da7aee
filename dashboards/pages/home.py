"""Home: the runs, their numbers, features to begin with, and how to read a feature."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import os
import shlex
from urllib.parse import urlencode

import streamlit as st

from .. import context
from ..run_index import DictionaryEntry, RunEntry
from ..stores import open_store
from ..widgets.feature_table import about, best_explained, curated_features
from ..widgets.html_tables import link_list, linked_table
from ..widgets.page_parts import plain, run_page, show_note, show_problem
from ..widgets.token_html import visible_text

FACTS = {"method": "method", "FVU": "fvu", "L0": "l0", "features": "d_sae"}
HINTS = {
    "FVU": "Fraction of variance unexplained, on the training rows",
    "L0": "Active latents per token, on the training rows",
    "dead, %": "Latents without a positive code at the end of training",
}
SUITES_TO_BEGIN_WITH = {
    "core": "measure its error, sparsity and loss recovered",
    "steering": "measure what its features cause",
}
HOW_TO_READ = """
A **dictionary** (sparse autoencoder) writes every activation of the language model as a sum of a
few **features**. A feature's page answers three questions.

1. **When is it active?** *Density* is the share of tokens on which it is active. *Top* examples
   are its strongest contexts and flatter it; *Random* examples are an unbiased sample of all its
   activations; *Quantiles* show contexts from strong to faint; *Near misses* are contexts where a
   similar feature is active and this one is silent.
2. **What does it do?** *Logits* are the tokens it makes more (+) or less (−) likely, if nothing
   came between it and the output. The *Steer* page tries it out.
3. **What is it near?** *Neighbours* point in a similar direction or are active on the same tokens.

Judge a feature by its random examples before believing its top ones.
"""


def render() -> None:
    """Draw the page."""
    st.title("saelab")
    index = context.run_index()
    for problem in index.problems:
        show_problem(problem)
    entry = context.chosen_dictionary()
    if not index.runs:
        show_note(
            "Nothing to show yet: no run, dictionary or feature store lies below "
            f"{', '.join(str(root) for root in index.roots)}. `saelab quickstart` makes all three."
        )
    if entry is not None:
        _show_curated(entry)
        _show_next(entry)
    if index.runs:
        st.header("Runs")
        for run in index.runs:
            _show_run(run, entry is not None and run.id == entry.run_id)
    st.header("How to read a feature")
    st.markdown(HOW_TO_READ)


def _show_run(run: RunEntry, opened: bool) -> None:
    n_stores = sum(entry.store_path is not None for entry in run.dictionaries)
    parts = [
        run.id,
        _counted(len(run.dictionaries), "dictionary", "dictionaries"),
        _counted(n_stores, "feature store", "feature stores"),
        run.status,
        run.created[:10],
    ]
    with st.expander(plain(" · ".join(part for part in parts if part)), expanded=opened):
        for problem in (run.problem, *(entry.problem for entry in run.dictionaries)):
            if problem:
                show_problem(problem)
        if not run.dictionaries:
            show_note("No dictionary is saved yet; the Training page shows how far the run is.")
            return
        entries = run.dictionaries
        columns = {
            "dictionary": [visible_text(entry.name) for entry in entries],
            **{title: [entry.facts.get(key) for entry in entries] for title, key in FACTS.items()},
            "dead, %": [_percent(entry.facts.get("dead")) for entry in entries],
            "evaluations": [", ".join(entry.evaluations) for entry in entries],
            "hook point": [entry.hook_point or "" for entry in entries],
        }
        st.html(
            linked_table(
                f"Dictionaries of {run.id} with method, FVU, L0, size and dead features",
                columns,
                [f"explore?{urlencode(context.link_params(entry))}" for entry in entries],
                hints=HINTS,
            )
        )


def _show_curated(entry: DictionaryEntry) -> None:
    if entry.store_path is None:
        return
    store = open_store(entry.store_path)
    table, labels = store.table(), context.label_texts(store)
    best = best_explained(context.all_labels(store))
    groups = [*([best] if best else []), *curated_features(store)]
    if groups:
        _show_tour(entry, groups[0].features[0])
    st.header("Features to begin with")
    st.caption(
        f"From {plain(entry.name)}, chosen from the numbers of its {store.n_features:,} features; "
        "beside each its label, or the tokens of its strongest examples."
    )
    if not groups:
        show_note(
            "Too few contexts were counted to recommend features; the Explore page lists all."
        )
    columns = st.columns(2)
    for number, group in enumerate(groups):
        with columns[number % 2], st.container(border=True):
            st.markdown(f"**{plain(group.title)}**")
            st.caption(plain(group.reason))
            items = [
                (context.feature_href(f), f"Feature {f}", about(table, labels, f))
                for f in group.features
            ]
            st.html(link_list(items))


def _show_tour(entry: DictionaryEntry, feature: int) -> None:
    """Two minutes with one feature, step by step."""
    st.header("A tour of one feature")
    page = context.feature_href(feature, entry)
    steer = f"steer?{urlencode(context.link_params(entry, f1=str(feature)))}"
    steps = (
        (page, "1. Guess", "read its strongest contexts: what do the coloured tokens share?"),
        (f"{page}&tab=Random", "2. Doubt", "does the guess hold on contexts drawn at random?"),
        (f"{page}&tab=Near+misses", "3. Border", "where is it silent, though a neighbour fires?"),
        (
            f"{page}&text=",
            "4. Try",
            "type a text that should make it fire, and one that should not",
        ),
        (steer, "5. Cause", "write with it turned up: does the text turn to what was guessed?"),
        (page, "6. Say", "write the label at the end of its page; it stays beside the store"),
    )
    st.html(link_list(steps))


def _show_next(entry: DictionaryEntry) -> None:
    """Commands for what is not there yet, each with a button that copies."""
    if entry.folder is None or entry.problem is not None:
        return
    where = shlex.quote(os.path.relpath(entry.folder))
    wanted = {"read its features into a store": None if entry.store_path else "features"}
    if entry.store_path is not None and not context.all_labels(open_store(entry.store_path)):
        wanted["say in words what its features stand for"] = "explain"
    for suite, purpose in SUITES_TO_BEGIN_WITH.items():
        wanted[purpose] = None if suite in entry.evaluations else f"eval {suite}"
    missing = {purpose: command for purpose, command in wanted.items() if command}
    if missing:
        st.header("What to run next")
    for purpose, command in missing.items():
        st.caption(f"To {purpose}:")
        st.code(f"saelab {command} {where}", language=None, wrap_lines=True)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _counted(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"


if __name__ == "__main__":
    run_page(render)
