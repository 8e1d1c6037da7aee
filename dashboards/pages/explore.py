"""Explore: every feature of a dictionary in one table, to search, filter and sort."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import time
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np
import streamlit as st

from saelab.errors import ConfigError
from saelab.explain.meaning import (
    MEANING_FILE,
    likeness_of_examples,
    likeness_of_explanations,
    missing_encoder,
)
from saelab.features.label_content import SCORE_DEFINITIONS, Label, one_each
from saelab.features.query import HELP
from saelab.features.reader import FeatureStore

from .. import url_state
from ..context import all_labels, feature_href, link_params, require_dictionary, require_store
from ..run_index import DictionaryEntry
from ..widgets import feature_table
from ..widgets.feature_html import counted, percent
from ..widgets.feature_table import (
    BEST_MATCH,
    DENSITIES,
    PERCENT,
    SHOWN,
    SORTS,
    FeatureFilter,
    scores_of,
    select_features,
    table_columns,
)
from ..widgets.figures import density_histogram
from ..widgets.html_tables import linked_table
from ..widgets.list_picker import add_to_list
from ..widgets.page_parts import (
    csv_text,
    plain,
    run_page,
    show_figure,
    show_note,
    show_problem,
)
from ..widgets.token_html import token_row, tokens_page

PEEK = 10
"""Tokens on either side of the example that is shown of a row pointed at."""
NUMBERS = ("density", "max activation", "contexts")
"""Shown beside the one that the table is sorted by; the file has all."""
WHERE = {
    "words": "words",
    "explanations": "meaning of explanations",
    "examples": "meaning of examples",
}
FIRST_SCORE = "detection score"
"""Shown of explanations that have it; others when they are asked for."""
FOLDED = ("show", "from", "to", "by", "score", "least")
"""Parameters of the address whose boxes are shown when they are set."""
ANY, NO_SCORE = "by any method", "any or none"
PERCENTS = {density: percent(density) for density in DENSITIES}


def render() -> None:
    """Draw the page."""
    entry = require_dictionary()
    store = require_store(entry)
    st.title("Explore")
    st.caption(
        plain(
            f"{store.n_features:,} features of {entry.name}, counted on {store.n_tokens:,} "
            f"{counted(store)}. A click opens a feature, pointing at it shows an example."
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
    search, where = st.columns([3, 1], vertical_alignment="bottom")
    query = url_state.widget(
        search.text_input,
        "Search",
        param="q",
        default="",
        on_change=_query_changed,
        placeholder='war -"civil war" token:/^ [A-Z]/',
        help=plain(
            f"By words: features whose top tokens, promoted tokens or label are as it says. {HELP} "
            "By meaning: features whose explanations, or the text of whose strongest examples, say "
            "something alike."
        ),
    )
    look = url_state.choice(
        where.selectbox, "Search by", WHERE, param="in", on_change=_query_changed
    )
    methods = [ANY, *sorted({label.method for label in labels})]
    # Folded, so that a phone shows features and not boxes.
    with st.expander("Filters and order", expanded=any(p in st.query_params for p in FOLDED)):
        show, low, high, sort, direction = st.columns(
            [1.6, 1.5, 1.5, 2, 1.4], vertical_alignment="bottom"
        )
        explained, score, least = st.columns([2.2, 2, 1.4], vertical_alignment="bottom")
    method, asked, at_least = ANY, NO_SCORE, 0.0
    if labels:
        first: dict[str, Any] = {"on_change": _to_first_page}
        method = url_state.choice(explained.selectbox, "Explained", methods, param="by", **first)
        labels = [label for label in labels if method in (ANY, label.method)]
        names = sorted({f"{score.name} score" for label in labels for score in label.scores})
        scored = [NO_SCORE, *names]
        asked = url_state.choice(score.selectbox, "Score", scored, param="score", **first)
        at_least = url_state.widget(
            least.number_input,
            "At least",
            -1.0,
            1.0,
            param="least",
            default=0.0,
            step=0.05,
            **first,
        )
    scores = sorted({f"{score.name} score" for label in labels for score in label.scores})
    sorts = [*([BEST_MATCH] if query.strip() else []), *SORTS, *scores]
    wanted = FeatureFilter(
        query=query,
        show=url_state.choice(
            show.selectbox, "Show", SHOWN, param="show", on_change=_to_first_page
        ),
        sort=url_state.choice(
            sort.selectbox, "Sort by", sorts, param="sort", on_change=_to_first_page
        ),
        descending=url_state.widget(
            direction.toggle, "Largest first", param="desc", default=False, on_change=_to_first_page
        ),
        density=(
            url_state.choice(
                low.selectbox, "Density from", PERCENTS, param="from", on_change=_to_first_page
            ),
            url_state.choice(
                high.selectbox, "to", PERCENTS, param="to", default=1.0, on_change=_to_first_page
            ),
        ),
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
            likeness = likeness_of_examples(path, store, query, progress)
        else:
            likeness = likeness_of_explanations(path, labels, query, progress)
    bar.empty()
    return likeness


def _query_changed() -> None:
    """A new search starts in the order of its best matches."""
    st.session_state.pop("explore_sort", None)
    st.query_params.pop("sort", None)
    _to_first_page()


def _to_first_page() -> None:
    st.query_params.pop("page", None)


def _show_table(
    entry: DictionaryEntry,
    store: FeatureStore,
    labels: Sequence[Label],
    wanted: FeatureFilter,
    scores: dict[str, Any],
    likeness: dict[int, float] | None,
) -> None:
    texts = {feature: label.text for feature, label in one_each(labels).items()}
    try:
        chosen, matched = select_features(store, texts, wanted, scores, likeness)
    except ConfigError as error:
        show_problem(f"{error}.")
        return
    if not len(chosen):
        show_note("No feature matches: take out a word, or widen the filters.")
        return
    hits = matched and ("found in" if likeness is None else "likeness", matched)
    asked = {FIRST_SCORE, wanted.score, wanted.sort}
    scores = {title: values for title, values in scores.items() if title in asked}
    above, below = st.container(), st.container(horizontal=True, vertical_alignment="bottom")
    n_pages = -(-len(chosen) // feature_table.ROWS)
    number = 1
    if n_pages > 1:
        number = url_state.widget(
            below.number_input,
            f"Page (of {n_pages:,})",
            1,
            n_pages,
            param="page",
            default=1,
            width=150,
        )
    start = feature_table.ROWS * (number - 1)
    features = chosen[start : start + feature_table.ROWS].tolist()
    columns = table_columns(store, texts, features, hits, wanted.sort, scores, NUMBERS)
    above.html(
        linked_table(
            f"Table of {len(chosen):,} features with their tokens, density and activations",
            columns,
            [feature_href(feature, entry) for feature in features],
            hints=_hints(scores),
            heads=_sort_links(columns, wanted),
            sorted_by=(_title(wanted.sort), wanted.descending),
            peeks=_peeks(store, features),
        )
    )
    below.caption(
        f"{start + 1:,} to {start + len(features):,} of {len(chosen):,} features"
        + (f", of {store.n_features:,} in all." if len(chosen) < store.n_features else ".")
    )
    with below:
        add_to_list(entry.name, store, features, "explore")
    below.download_button(
        "Download CSV",
        lambda: csv_text(table_columns(store, texts, chosen.tolist(), hits, wanted.sort, scores)),
        file_name="features.csv",
        mime="text/csv",
        on_click="ignore",
    )


def _peeks(store: FeatureStore, features: Sequence[int]) -> list[str]:
    """The strongest example of each feature as HTML; empty for one that has none."""
    examples = store.strongest_examples(features, PEEK)
    return [
        tokens_page([token_row(e.texts, e.activations.tolist(), e.value, anchor=e.anchor)])
        if (e := examples.get(feature))
        else ""
        for feature in features
    ]


def _title(sort: str) -> str:
    """Title of the column that a table is sorted by."""
    return {"index": "feature", "density": f"density{PERCENT}"}.get(sort, sort)


def _sort_links(columns: Iterable[str], wanted: FeatureFilter) -> dict[str, str]:
    """By title, the address of the same table sorted by that column, or the other way round."""
    sorts = {_title(sort): sort for sort in SORTS}
    sorts |= {title: title for title in columns if title.endswith(" score")}
    shown = {
        k: v for k, v in st.query_params.to_dict().items() if k not in ("page", "desc", "sort")
    }
    links = {}
    for title in sorts.keys() & set(columns):
        sort = sorts[title]
        # The largest numbers are asked for first, the indices from 0.
        first = not wanted.descending if sort == wanted.sort else sort != "index"
        params = {**shown, **({"desc": "True"} if first else {})}
        # A search without an order has that of its best matches.
        params |= {"sort": sort} if sort != "index" or wanted.query.strip() else {}
        links[title] = f"explore?{urlencode(params)}"
    return links


def _hints(scores: Iterable[str]) -> dict[str, str]:
    meanings = {title: SCORE_DEFINITIONS.get(title.removesuffix(" score"), "") for title in scores}
    return {**meanings, **HINTS}


HINTS = {
    "likeness": "Cosine to the query",
    "top tokens": "Tokens at which its strongest examples peak",
    "promoted tokens": "Tokens whose logits it raises most",
    f"density{PERCENT}": "The share of what was counted on which it is active",
    "mean activation": "Over what it is active on",
    "contexts": "Contexts in which it is active at all",
    "activation kurtosis": "Of its positive activations; normal: 3",
    "largest logit": "What it adds at most to a token's logit",
    "logit kurtosis": "Over the vocabulary; far above 3: it speaks for a few tokens",
    "flags": "dead: never active; rare, dense: below or above the bounds of the store",
}


if __name__ == "__main__":
    run_page(render)
