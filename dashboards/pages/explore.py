"""Explore: every feature of a dictionary in one table, to search, filter and sort."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from saelab.explain.meaning import (
    MEANING_FILE,
    likeness_of_examples,
    likeness_of_explanations,
    missing_encoder,
)
from saelab.features.label_content import SCORE_DEFINITIONS, Label, one_each
from saelab.features.reader import FeatureStore

from .. import url_state
from ..context import all_labels, link_params, require_dictionary, require_store, show_features
from ..run_index import DictionaryEntry
from ..widgets.feature_html import counted
from ..widgets.feature_table import (
    BEST_MATCH,
    LOWEST_LOG_DENSITY,
    SHOWN,
    SORTS,
    FeatureFilter,
    scores_of,
    select_features,
    table_columns,
)
from ..widgets.figures import density_histogram
from ..widgets.page_parts import csv_text, plain, run_page, show_figure, show_note

MOST_ROWS = 1000
WHERE = {
    "words": "words",
    "explanations": "meaning of explanations",
    "examples": "meaning of examples",
}
FIRST_SCORE = "detection score"
"""Shown of explanations that have it; others when they are asked for."""
ANY, NO_SCORE = "by any method", "any or none"
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
    wanted, labels, where = _draw_filter(all_labels(store))
    # The feature's page leads back here.
    st.session_state["explore_address"] = link_params(entry) | st.query_params.to_dict()
    scores = scores_of(labels, store.n_features)
    likeness = None
    if where != "words" and wanted.query.strip():
        likeness = _likeness(store, labels, wanted.query, where)
    if where == "words" or likeness is not None or not wanted.query.strip():
        _show_table(entry, store, labels, wanted, scores, likeness)
    densities = np.nan_to_num(store.table()["density"])
    n_tokens = {entry.name: store.n_tokens}
    chart = density_histogram({entry.name: densities}, n_tokens, counted(store))
    show_figure(chart, "densities")


def _draw_filter(labels: Sequence[Label]) -> tuple[FeatureFilter, Sequence[Label], str]:
    """Draw the boxes; returns the filter, the labels that count, and where a search looks."""
    search, where, show, sort, direction = st.columns(
        [4, 2.2, 1.6, 2, 1.4], vertical_alignment="bottom"
    )
    query = url_state.widget(
        search.text_input,
        "Search",
        param="q",
        default="",
        on_change=_query_changed,
        placeholder="words of tokens or labels, or what it is about",
        help="By words: features whose top tokens, promoted tokens or label hold every word, from "
        "its start; signs such as ( are looked for as they stand. By meaning: features whose "
        "explanations, or the text of whose strongest examples, say something alike.",
    )
    look = url_state.choice(
        where.selectbox, "Search by", WHERE, param="in", on_change=_query_changed
    )
    methods = [ANY, *sorted({label.method for label in labels})]
    explained, score, least, density = st.columns([2.2, 2, 1.4, 5.6], vertical_alignment="bottom")
    method, asked, at_least = ANY, NO_SCORE, 0.0
    if labels:
        method = url_state.choice(explained.selectbox, "Explained", methods, param="by")
        labels = [label for label in labels if method in (ANY, label.method)]
        names = sorted({f"{score.name} score" for label in labels for score in label.scores})
        asked = url_state.choice(score.selectbox, "Score", [NO_SCORE, *names], param="score")
        at_least = url_state.widget(
            least.number_input, "At least", -1.0, 1.0, param="least", default=0.0, step=0.05
        )
    scores = sorted({f"{score.name} score" for label in labels for score in label.scores})
    sorts = [*([BEST_MATCH] if query.strip() else []), *SORTS, *scores]
    wanted = FeatureFilter(
        query=query,
        show=url_state.choice(show.selectbox, "Show", SHOWN, param="show"),
        sort=url_state.choice(sort.selectbox, "Sort by", sorts, param="sort"),
        descending=url_state.widget(direction.toggle, "Largest first", param="desc", default=False),
        log_density=_draw_density_range(density if labels else st),
        only_labelled=method != ANY,
        score=asked,
        least=at_least,
    )
    return wanted, labels, look


def _likeness(
    store: FeatureStore, labels: Sequence[Label], query: str, where: str
) -> dict[int, float] | None:
    """Likeness of features to the query; None where there is no encoder, which the page says."""
    if problem := missing_encoder():
        show_note(problem[0].upper() + problem[1:] + ".")
        return None
    path = store.path.with_name(MEANING_FILE)
    bar, began = st.empty(), time.monotonic()

    def progress(done: int, total: int) -> None:
        left = (time.monotonic() - began) * (total / done - 1)
        words = f"{done:,} of {total:,}, about {left:,.0f} s left"
        bar.progress(done / total, f"Reading what is searched, this once: {words}")

    with st.spinner("Searching by meaning (the first time, the encoder is loaded) …"):
        if where == "examples":
            found = likeness_of_examples(path, store, query, progress)
        else:
            found = likeness_of_explanations(path, labels, query, progress)
    bar.empty()
    return found


def _query_changed() -> None:
    """A new search starts in the order of its best matches."""
    st.session_state.pop("explore_sort", None)
    st.query_params.pop("sort", None)


def _draw_density_range(place: Any) -> tuple[float, float]:
    url_state.bind("explore_density", "density", FULL_RANGE, _parse_range)
    bounds: Any = place.slider(
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
    entry: DictionaryEntry,
    store: FeatureStore,
    labels: Sequence[Label],
    wanted: FeatureFilter,
    scores: dict[str, Any],
    likeness: dict[int, float] | None,
) -> None:
    texts = {feature: label.text for feature, label in one_each(labels).items()}
    features, hits = select_features(store, texts, wanted, scores, likeness)
    chosen = features.tolist()
    if not chosen:
        show_note("No feature matches: take out a word, or widen the filters.")
        return
    found = "found in" if likeness is None else "likeness"
    asked = {FIRST_SCORE, wanted.score, wanted.sort}
    scores = {title: values for title, values in scores.items() if title in asked}

    def columns(features: list[int]) -> dict[str, list[Any]]:
        return table_columns(store, texts, features, hits, wanted.sort, scores, found)

    show_features(
        columns(chosen[:MOST_ROWS]),
        entry,
        "explore_table",
        f"Table of {len(chosen):,} features with their tokens, density and activations",
        height=min(560, 38 + 35 * min(len(chosen), MOST_ROWS)),
        column_config=_column_formats(list(scores)),
    )
    cut = f", of which the first {MOST_ROWS:,} are shown" if len(chosen) > MOST_ROWS else ""
    count, download = st.columns([5, 1], vertical_alignment="center")
    count.caption(f"{len(chosen):,} of {store.n_features:,} features{cut}.")
    download.download_button(
        "Download CSV",
        lambda: csv_text(columns(chosen)),
        file_name="features.csv",
        mime="text/csv",
        on_click="ignore",
    )


def _column_formats(scores: Sequence[str]) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    meanings = {title: SCORE_DEFINITIONS.get(title.removesuffix(" score")) for title in scores}
    return {
        **{title: number(format="%.2f", help=meaning) for title, meaning in meanings.items()},
        "likeness": st.column_config.TextColumn(help="Cosine to the query", width="small"),
        "feature": number(format="%d", width="small", pinned=True),
        "label": st.column_config.TextColumn(width="large"),
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
