"""Feature: everything known of one feature, from its numbers to its provenance."""

from __future__ import annotations

import random
from urllib.parse import urlencode

import streamlit as st

from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore
from saelab.features.records import FeatureRecord

from .. import url_state
from ..context import (
    link_params,
    open_labels,
    require_dictionary,
    require_store,
    staleness_of,
)
from ..export import feature_html, feature_json
from ..feature_html import logit_tables, number_strip, numbers_of
from ..figures import activation_histogram, logit_histogram
from ..page_parts import FEATURE_PAGE, plain, show_figure, show_note, show_problem
from ..run_index import DictionaryEntry
from .feature_examples import show_examples
from .feature_labels import show_labels
from .feature_neighbours import show_neighbours

PROVENANCE = ("model", "hook_point", "text", "text_split", "context_length", "model_dtype")


def render() -> None:
    """Draw the page."""
    entry = require_dictionary()
    store = require_store(entry)
    feature = chosen_feature(store)
    if feature is None:
        return
    record = store.feature(feature)
    book = open_labels(store)
    show_head(entry, store, record, book)
    if record.n_active == 0:
        show_note(
            f"Feature {feature} was never active on the {store.n_tokens:,} tokens counted. What "
            "its weights alone say is below."
        )
    st.html(number_strip(numbers_of(record)))
    show_charts(record, store)
    if record.n_active:
        show_examples(entry, feature, record.max_act)
    show_neighbours(record, store, book)
    show_labels(record.id, book)
    show_provenance(entry, store)


def chosen_feature(store: FeatureStore) -> int | None:
    """The feature of the address, checked; a sentence where there is no such feature."""
    given = st.query_params.get("f")
    feature = url_state.read("f", 0 if given is None else -1, url_state.count)
    if 0 <= feature < store.n_features:
        return feature
    show_problem(
        f"The address asks for feature {given!r}; this dictionary has features 0 to "
        f"{store.n_features - 1:,}."
    )
    st.page_link(FEATURE_PAGE, label="Open feature 0", query_params=link_params(f="0"))
    return None


def show_head(
    entry: DictionaryEntry, store: FeatureStore, record: FeatureRecord, book: LabelBook
) -> None:
    """Title, label, flags, and the ways to other features and out of the app."""
    st.title(plain(f"Feature {record.id}"))
    labels = book.of(record.id)
    if labels:
        newest = labels[0]
        score = "" if newest.score is None else f", score {newest.score:.2g}"
        st.markdown(f"**{plain(newest.text)}**")
        st.caption(plain(f"{newest.author}, {newest.method}{score}"))
    else:
        tokens = ", ".join(repr(text) for text in record.top_tokens[:5])
        st.caption(plain(f"No label yet. Strongest on {tokens}" if tokens else "No label yet."))
    badges = " ".join(f":orange-badge[{flag}]" for flag in record.flags)
    st.markdown(f":blue-badge[{plain(entry.name)}] {badges}")
    stale = staleness_of(store, entry)
    if stale:
        show_problem(stale)
    show_ways(entry, store, record, book)


def show_ways(
    entry: DictionaryEntry, store: FeatureStore, record: FeatureRecord, book: LabelBook
) -> None:
    """Previous, next and other features as real links; jump, copy, export."""
    feature, last = record.id, store.n_features - 1
    with st.container(horizontal=True, vertical_alignment="center"):
        for label, target in (
            ("← Previous", feature - 1),
            ("Next →", feature + 1),
            ("Random", random.Random(feature).randint(0, last)),
        ):
            st.page_link(
                FEATURE_PAGE,
                label=label,
                disabled=not 0 <= target <= last,
                query_params=link_params(entry, f=str(min(max(target, 0), last))),
            )
        for page, label in (
            ("explore", "All features"),
            ("prompt", "Try text"),
            ("steer", "Steer"),
        ):
            params = link_params(entry) if page == "explore" else link_params(entry, f=str(feature))
            st.page_link(f"page_files/{page}.py", label=label, query_params=params)
        with st.popover("Share"):
            show_sharing(entry, store, record, book)
        draw_jump(feature, last)


def draw_jump(feature: int, last: int) -> None:
    """A box with the feature's number; another number opens that feature."""
    url_state.bind("feature_number", "f", feature, url_state.count)
    number = st.number_input(
        "Feature number", 0, last, key="feature_number", label_visibility="collapsed", width=130
    )
    if number != feature:
        url_state.publish("f", number, None)
        st.rerun()


def show_sharing(
    entry: DictionaryEntry, store: FeatureStore, record: FeatureRecord, book: LabelBook
) -> None:
    """The address to copy, and the files to download."""
    st.markdown("Address of this page")
    base = (st.context.url or "").split("?")[0]
    st.code(
        f"{base}?{urlencode(link_params(entry, f=str(record.id)))}", language=None, wrap_lines=True
    )
    name = f"{entry.name.replace('/', '_')}_feature_{record.id}"
    st.download_button(
        "Page as HTML",
        lambda: feature_html(entry.name, store, record.id, book.of(record.id)),
        file_name=f"{name}.html",
        mime="text/html",
        on_click="ignore",
        help="One file without scripts that opens anywhere, offline.",
    )
    st.download_button(
        "Data as JSON",
        lambda: feature_json(entry.name, store, record.id, book.of(record.id)),
        file_name=f"{name}.json",
        mime="application/json",
        on_click="ignore",
    )


def show_charts(record: FeatureRecord, store: FeatureStore) -> None:
    """How strong it is, and what it does to the logits."""
    left, middle, right = st.columns(3)
    with left:
        linear = st.session_state.get("feature_linear", False)
        figure = activation_histogram(record, log_counts=not linear)
        if figure is not None:
            show_figure(figure, "activations")
            st.toggle("Linear counts", key="feature_linear")
    lens = record.logit_lens
    with middle:
        if lens is not None:
            show_figure(logit_histogram(lens), "logits")
    with right:
        st.markdown("##### Logits")
        if lens is None:
            show_note("This store was built without a language model, so it has no logits.")
        else:
            st.html(logit_tables(lens))
            st.caption(plain(store.manifest.get("logit_lens") or ""))


def show_provenance(entry: DictionaryEntry, store: FeatureStore) -> None:
    """What the numbers were counted on."""
    with st.expander("Provenance"):
        manifest = store.manifest
        origin = manifest["made_from"]
        facts = {
            "dictionary": entry.name,
            "dictionary hash": origin.get("dictionary_hash"),
            **{key.replace("_", " "): origin.get(key) for key in PROVENANCE},
            "tokens counted": f"{store.n_tokens:,}",
            "tokens left out": manifest.get("excluded"),
            "contexts": f"{store.n_sequences:,}",
            "rows that count": origin.get("row_rule"),
            "built": manifest.get("created"),
            "with": manifest.get("library_versions"),
            "store": store.store_id,
        }
        st.table(
            {"what": list(facts), "value": [fact_text(value) for value in facts.values()]},
            hide_index=True,
        )


def fact_text(value: object) -> str:
    """A fact of the manifest as text that markdown leaves alone."""
    if isinstance(value, dict):
        text = ", ".join(f"{key} {fact_text(part)}" for key, part in value.items())
    else:
        text = "not recorded" if value is None else str(value)
    return plain(text) if not isinstance(value, dict) else text
