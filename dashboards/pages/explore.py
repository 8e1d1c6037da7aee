"""Explore: every feature of a dictionary in one table, to search, filter and sort."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from typing import Any

import numpy as np
import streamlit as st

from saelab.features.reader import FeatureStore

from .. import url_state
from ..context import label_texts, require_dictionary, require_store, show_features
from ..run_index import DictionaryEntry
from ..widgets.feature_html import counted
from ..widgets.feature_table import (
    BEST_MATCH,
    LOWEST_LOG_DENSITY,
    SHOWN,
    SORTS,
    FeatureFilter,
    select_features,
    table_columns,
)
from ..widgets.figures import density_histogram
from ..widgets.page_parts import csv_text, plain, run_page, show_figure, show_note

MOST_ROWS = 1000
FULL_RANGE = (LOWEST_LOG_DENSITY, 0.0)


def render() -> None:
    """Draw the page."""
    entry = require_dictionary()
    store = require_store(entry)
    st.title("Explore")
    st.caption(
        plain(
            f"{store.n_features:,} features of {entry.name}, counted on {store.n_tokens:,} "
            f"{counted(store)}. Choose a row by the box at its left to open the feature."
        )
    )
    _show_table(entry, store, label_texts(store), _draw_filter())
    densities = np.nan_to_num(store.table()["density"])
    n_tokens = {entry.name: store.n_tokens}
    chart = density_histogram({entry.name: densities}, n_tokens, counted(store))
    show_figure(chart, "densities")


def _draw_filter() -> FeatureFilter:
    search, show, sort, direction = st.columns([4, 2, 2, 1.4], vertical_alignment="bottom")
    query = url_state.widget(
        search.text_input,
        "Search",
        param="q",
        default="",
        on_change=_query_changed,
        placeholder="a word in top tokens, promoted tokens or labels",
        help="Features whose top tokens, promoted tokens or label hold every word, from its "
        "start. Signs such as ( are looked for as they stand.",
    )
    sorts = [BEST_MATCH, *SORTS] if query.strip() else list(SORTS)
    return FeatureFilter(
        query=query,
        show=url_state.choice(show.selectbox, "Show", SHOWN, param="show"),
        sort=url_state.choice(sort.selectbox, "Sort by", sorts, param="sort"),
        descending=url_state.widget(direction.toggle, "Largest first", param="desc", default=False),
        log_density=_draw_density_range(),
    )


def _query_changed() -> None:
    """A new search starts in the order of its best matches."""
    st.session_state.pop("explore_sort", None)
    st.query_params.pop("sort", None)


def _draw_density_range() -> tuple[float, float]:
    url_state.bind("explore_density", "density", FULL_RANGE, _parse_range)
    bounds: Any = st.slider(
        "Density, log10",
        *FULL_RANGE,
        step=0.25,
        key="explore_density",
        help="log10 of the share on which a feature is active: −3 is one token (or row) in a "
        "thousand. The full range also shows features that were never active.",
    )
    low, high = map(float, bounds)
    url_state.publish("density", f"{low:g}:{high:g}", f"{FULL_RANGE[0]:g}:{FULL_RANGE[1]:g}")
    return low, high


def _parse_range(text: str) -> tuple[float, float]:
    """Two numbers with a colon between them, inside the slider's range and in order."""
    low, _, high = text.partition(":")
    bounds = float(low), float(high)
    if not FULL_RANGE[0] <= bounds[0] <= bounds[1] <= FULL_RANGE[1]:
        raise ValueError(text)
    return bounds


def _show_table(
    entry: DictionaryEntry, store: FeatureStore, labels: dict[int, str], wanted: FeatureFilter
) -> None:
    features, hits = select_features(store, labels, wanted)
    chosen = features.tolist()
    if not chosen:
        show_note("No feature matches: take out a word, or widen the filters.")
        return
    show_features(
        table_columns(store, labels, chosen[:MOST_ROWS], hits, wanted.sort),
        entry,
        "explore_table",
        f"Table of {len(chosen):,} features with their tokens, density and activations",
        height=min(560, 38 + 35 * min(len(chosen), MOST_ROWS)),
        column_config=_column_formats(),
    )
    cut = f", of which the first {MOST_ROWS:,} are shown" if len(chosen) > MOST_ROWS else ""
    count, download = st.columns([5, 1], vertical_alignment="center")
    count.caption(f"{len(chosen):,} of {store.n_features:,} features{cut}.")
    download.download_button(
        "Download CSV",
        lambda: csv_text(table_columns(store, labels, chosen, hits, wanted.sort)),
        file_name="features.csv",
        mime="text/csv",
        on_click="ignore",
    )


def _column_formats() -> dict[str, Any]:
    number = st.column_config.NumberColumn
    return {
        "feature": number(format="%d", width="small", pinned=True),
        "label": st.column_config.TextColumn(width="medium"),
        "found in": st.column_config.TextColumn(width="small"),
        "top tokens": st.column_config.TextColumn(
            help="Tokens at which its strongest examples peak", width="medium"
        ),
        "promoted tokens": st.column_config.TextColumn(
            help="Tokens whose logits it raises most", width="medium"
        ),
        "density": number(
            format="%.2e", help="The share of what was counted on which it is active"
        ),
        "max activation": number(format="%.3g"),
        "mean activation": number(format="%.3g", help="Over what it is active on"),
        "contexts": number(format="localized", help="Contexts in which it is active at all"),
        "activation kurtosis": number(format="%.3g", help="Of its positive activations; normal: 3"),
        "largest logit": number(format="%.3g", help="What it adds at most to a token's logit"),
        "logit kurtosis": number(
            format="%.3g", help="Over the vocabulary; far above 3: it speaks for a few tokens"
        ),
        "decoder norm": number(format="%.3g"),
        "flags": st.column_config.TextColumn(
            help="dead: never active; rare, dense: below or above the bounds of the store"
        ),
    }


if __name__ == "__main__":
    run_page(render)
