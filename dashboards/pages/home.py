"""Home: the runs found, their numbers, features to begin with, and how to read a feature."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from typing import Any

import streamlit as st

from saelab.features.reader import FeatureStore
from saelab.features.unpacking import split_tokens

from ..context import (
    chosen_dictionary,
    feature_link,
    link_params,
    open_labels,
    open_store,
    run_index,
)
from ..run_index import DictionaryEntry, RunEntry
from ..widgets.curated import CuratedGroup, curated_groups
from ..widgets.page_parts import (
    plain,
    run_page,
    show_note,
    show_problem,
)
from ..widgets.token_html import visible_text

MOST_CURATED_TOKENS = 6

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
    index = run_index()
    for problem in index.problems:
        show_problem(problem)
    entry = chosen_dictionary()
    if not index.runs:
        show_note(
            "Nothing to show yet: no run, dictionary or feature store lies below "
            f"{', '.join(str(root) for root in index.roots)}. `saelab quickstart` makes all three."
        )
    if entry is not None and entry.store_path is not None:
        show_curated(entry)
    if index.runs:
        st.header("Runs")
        for place, run in enumerate(index.runs):
            show_run(run, place, opened=entry is not None and run.id == entry.run_id)
    st.header("How to read a feature")
    st.markdown(HOW_TO_READ)


def show_run(run: RunEntry, place: int, *, opened: bool) -> None:
    """One run and the numbers of its dictionaries."""
    n_stores = sum(entry.store_path is not None for entry in run.dictionaries)
    summary = f"{run.id} · {count_text(len(run.dictionaries), 'dictionary', 'dictionaries')}"
    summary += f" · {count_text(n_stores, 'feature store', 'feature stores')} · {run.status}"
    if run.created:
        summary += f" · {run.created[:10]}"
    with st.expander(plain(summary), expanded=opened):
        if run.problem:
            show_problem(run.problem)
        for entry in run.dictionaries:
            if entry.problem:
                show_problem(entry.problem)
        if not run.dictionaries:
            show_note("No dictionary is saved yet; the Training page shows how far the run is.")
            return
        st.dataframe(
            run_table(run),
            hide_index=True,
            key=f"run_table_{place}",
            alt=f"Dictionaries of {run.id} with method, size, L0, FVU and dead features",
            column_config={
                "open": st.column_config.LinkColumn("open", display_text="features"),
                "features": st.column_config.NumberColumn(format="localized"),
                "L0": st.column_config.NumberColumn(
                    format="%.1f", help="Active latents per token, on the training rows"
                ),
                "FVU": st.column_config.NumberColumn(
                    format="%.4f", help="Fraction of variance unexplained, on the training rows"
                ),
                "dead": st.column_config.NumberColumn(
                    format="percent", help="Latents without a positive code at the end of training"
                ),
            },
        )


def run_table(run: RunEntry) -> dict[str, list[Any]]:
    """The numbers of a run's dictionaries, by column."""
    entries = run.dictionaries
    return {
        "dictionary": [entry.name for entry in entries],
        "open": [address_of(entry) if entry.store_path else "" for entry in entries],
        "method": [entry.facts.get("method") for entry in entries],
        "features": [entry.facts.get("d_sae") for entry in entries],
        "L0": [entry.facts.get("l0") for entry in entries],
        "FVU": [entry.facts.get("fvu") for entry in entries],
        "dead": [entry.facts.get("dead") for entry in entries],
        "evaluations": [", ".join(entry.evaluations) for entry in entries],
        "hook point": [entry.hook_point for entry in entries],
    }


def address_of(entry: DictionaryEntry, page: str = "explore") -> str:
    """Address of a page for a dictionary, within the app."""
    from urllib.parse import urlencode

    return f"/{page}?{urlencode(link_params(entry))}"


def show_curated(entry: DictionaryEntry) -> None:
    """Features to begin with, each with its top tokens."""
    assert entry.store_path is not None
    store = open_store(entry.store_path)
    groups = _curated(store, store.store_id)
    st.header("Features to begin with")
    st.caption(
        f"From {plain(entry.name)}, chosen from the numbers of its {store.n_features:,} features; "
        "beside each the tokens of its strongest examples."
    )
    if not groups:
        show_note(
            "Too few contexts were counted to recommend features; the Explore page lists all."
        )
    table, labels = store.table(), open_labels(store).latest()
    columns = st.columns(2)
    for place, group in enumerate(groups):
        with columns[place % 2], st.container(border=True):
            st.markdown(f"**{plain(group.title)}**")
            st.caption(plain(group.reason))
            _show_group(group, table, {f: label.text for f, label in labels.items()})


def _show_group(group: CuratedGroup, table: dict[str, Any], labels: dict[int, str]) -> None:
    for feature in group.features:
        left, right = st.columns([2, 5], vertical_alignment="center")
        with left:
            feature_link(feature)
        tokens = split_tokens(table["top_tokens"][feature])[:MOST_CURATED_TOKENS]
        text = labels.get(feature) or "  ".join(visible_text(token) for token in tokens)
        right.markdown(plain(text))


@st.cache_resource(max_entries=32, show_spinner=False)
def _curated(_store: FeatureStore, store_id: str) -> list[CuratedGroup]:  # noqa: ARG001 - the key
    return curated_groups(_store.table())


def count_text(number: int, one: str, many: str) -> str:
    """A count with its noun."""
    return f"{number:,} {one if number == 1 else many}"


if __name__ == "__main__":
    run_page(render)
