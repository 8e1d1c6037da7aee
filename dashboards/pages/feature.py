"""Feature: everything known of one feature, from its numbers to its provenance."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import os
import random
from collections.abc import Callable, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import numpy as np
import streamlit as st

from saelab.errors import ArtifactError, SaelabError
from saelab.features.label_content import BY_HAND, EDITED, MAX_LABEL_WORDS, Label, Note
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore
from saelab.features.records import Example, FeatureRecord

from .. import context, url_state
from ..run_index import DictionaryEntry, neuronpedia_addresses
from ..stores import open_labels, staleness_of
from ..widgets.explanations import by_prominence, definitions_html, explanation_html
from ..widgets.feature_html import (
    NEIGHBOUR_LISTS,
    ExampleView,
    charts_html,
    counted,
    distinct,
    examples_html,
    feature_html,
    feature_json,
    group_heading,
    number_strip,
    provenance_table,
)
from ..widgets.feature_table import about
from ..widgets.html_tables import link_columns, link_row
from ..widgets.list_picker import add_to_list
from ..widgets.page_parts import FEATURE_PAGE, plain, run_page, show_note, show_problem
from ..widgets.sharing import HTML_NOTE, SharedFile, draw_sharing
from ..widgets.token_html import short_label, token_row, tokens_page, visible, visible_text
from ..widgets.try_text import try_text

LISTS = {
    "Top": "Contexts with the highest maxima, one window for each context, no two alike. The "
    "strongest examples flatter a feature: compare them with the random ones.",
    "Quantiles": "Contexts drawn from strata of equally many contexts, from the strongest down; a "
    "stratum holds its lower edge and not its upper one, but for the highest.",
    "Random": "Drawn uniformly from all on which the feature is active: an unbiased sample, "
    "which the top examples are not.",
    "Near misses": "Contexts in which the feature is silent: first where a feature with a similar "
    "decoder row is active, then any.",
}
WINDOWS: dict[str, int | None] = {"±8": 8, "±24": 24, "full": None}
MOST_NEIGHBOURS = 8
EDGE = 400
"""Characters shown of the contexts before and after one that is opened."""
KEPT = ("tab", "window", "text")
"""Parameters of the address that the next feature is opened with."""
SIDE_BY_SIDE, MOST_EXPLANATIONS = 3, 6
AUTHOR_KEY = "label_author"
ENDPOINT_VARIABLE, ENDPOINT_MODEL_VARIABLE = "SAELAB_ENDPOINT", "SAELAB_ENDPOINT_MODEL"
"""Environment variables that name the server which explains a feature on request, and its model."""


def render() -> None:
    """Draw the page."""
    entry = context.require_dictionary()
    store = context.require_store(entry)
    feature = _chosen_feature(store)
    if feature is None:
        return
    record = store.feature(feature)
    book, labels, note = _read_labels(store, feature)
    name = short_label(visible_text(labels[0].text)) if labels else entry.name
    st.set_page_config(page_title=f"Feature {feature} · {name}")
    steps = _show_head(entry, store, record, labels)
    above = st.container()
    if record.n_active:
        _show_examples(entry, feature, record.max_act, steps)
        if counted(store) == "tokens":
            try_text(entry, store, feature)
    else:
        _draw_steps(steps, entry, store, feature)
    with above:
        if book is not None:
            _show_explanations(entry, store, feature)
        if record.n_active == 0:
            show_note(
                f"Feature {feature} was never active on the {store.n_tokens:,} {counted(store)} "
                "counted. What its weights alone say is below."
            )
        logits = store.manifest.get("logit_lens") or "No logits: none were computed."
        strip = number_strip(record, of_rows=counted(store) == "rows")
        st.html(strip + charts_html(record, counted(store), logits))
    _show_neighbours(entry, record, store)
    if book is not None:
        _show_label_forms(feature, book, note)
    with st.expander("Provenance"):
        st.html(provenance_table(entry.name, store))


def _read_labels(
    store: FeatureStore, feature: int
) -> tuple[LabelBook | None, list[Label], Note | None]:
    """The book, the feature's labels and its note; a damaged book is said, and takes no page."""
    try:
        book = open_labels(store)
        return book, by_prominence(book.of(feature)), book.note(feature)
    except ArtifactError as error:
        show_problem(str(error))
        return None, [], None


def _chosen_feature(store: FeatureStore) -> int | None:
    """The feature of the address, checked; a sentence where there is no such feature."""
    given = st.query_params.get("f")
    feature = url_state.read("f", 0 if given is None else -1, url_state.count)
    if 0 <= feature < store.n_features:
        return feature
    show_problem(
        f"The address asks for feature {given!r}; this dictionary has features 0 to "
        f"{store.n_features - 1:,}."
    )
    st.page_link(FEATURE_PAGE, label="Open feature 0", query_params=context.link_params(f="0"))
    return None


def _show_head(
    entry: DictionaryEntry, store: FeatureStore, record: FeatureRecord, labels: Sequence[Label]
) -> Any:
    """Draw title and links; returns the place of the links to other features."""
    st.title(plain(f"Feature {record.id}"))
    if not labels:
        tokens = ", ".join(repr(short_label(text)) for text in record.top_tokens[:5])
        st.caption(plain(f"No label yet. Strongest on {tokens}" if tokens else "No label yet."))
    badges = " ".join(f":orange-badge[{flag}]" for flag in record.flags)
    st.markdown(f":blue-badge[{plain(entry.name)}] {badges}")
    stale = staleness_of(store, entry)
    if stale:
        show_problem(stale)
    feature, last = record.id, store.n_features - 1
    with st.container(horizontal=True, vertical_alignment="center"):
        steps = st.container(width="content").empty()  # what a fragment draws again takes its place
        searched = st.session_state.get("explore_address", {})
        params = context.link_params(entry)
        if params.items() <= searched.items():
            params = searched
        st.page_link("explore.py", label="All features", query_params=params)
        for page, label in (("prompt.py", "Prompt"), ("steer.py", "Steer")):
            st.page_link(page, label=label, query_params=context.link_params(entry, f=str(feature)))
        _draw_sharing(entry, store, feature, labels)
        add_to_list(entry.name, store, [feature], f"feature_{feature}")
        # A box with the feature's number; another number opens that feature.
        url_state.bind("feature_number", "f", feature, url_state.count)
        number = st.number_input(
            "Feature number", 0, last, key="feature_number", label_visibility="collapsed", width=130
        )
        if number != feature:
            url_state.publish("f", number, None)
            st.rerun()
    return steps


def _draw_steps(row: Any, entry: DictionaryEntry, store: FeatureStore, feature: int) -> None:
    """Links to other features, which show the list and window that this one shows."""
    alive = np.flatnonzero(store.table()["n_active"] > 0)
    others = alive[alive != feature].tolist() or [feature]
    kept = {param: st.query_params[param] for param in KEPT if param in st.query_params}
    links = [
        (label, context.feature_href(target, entry, **kept) if 0 <= target <= last else None)
        for last in [store.n_features - 1]
        for label, target in (
            ("← Previous", feature - 1),
            ("Next →", feature + 1),
            ("Random", random.choice(others)),
        )
    ]
    row.html(link_row(links))


@st.fragment
def _show_explanations(entry: DictionaryEntry, store: FeatureStore, feature: int) -> None:
    """Everything said of a feature, side by side; a vote draws nothing else again."""
    book, labels, _ = _read_labels(store, feature)
    if book is None:
        return
    if problem := st.session_state.pop("vote_problem", None):
        show_problem(problem)
    if "pending_vote" in st.session_state:
        st.text_input(
            "Your name, which a vote needs", key="voter", on_change=_name_voter, args=(book,)
        )
    _show_cards(labels[:MOST_EXPLANATIONS], book)
    if labels[MOST_EXPLANATIONS:]:
        with st.expander(f"{len(labels) - MOST_EXPLANATIONS} more"):
            _show_cards(labels[MOST_EXPLANATIONS:], book)
    if definitions := definitions_html(labels):
        st.html(definitions)
    endpoint = os.environ.get(ENDPOINT_VARIABLE)
    if endpoint and entry.folder is not None and st.button("Explain this feature"):
        _explain(entry.folder, feature, endpoint)


def _show_cards(labels: Sequence[Label], book: LabelBook) -> None:
    across = max(2, min(SIDE_BY_SIDE, len(labels)))
    for start in range(0, len(labels), across):
        row = labels[start : start + across]
        for column, label in zip(st.columns(across), row, strict=False):
            with column.container(border=True):
                st.html(explanation_html(label))
                _draw_actions(label, book)


def _draw_actions(label: Label, book: LabelBook) -> None:
    author = str(st.session_state.get(AUTHOR_KEY, ""))
    with st.container(horizontal=True, vertical_alignment="center"):
        for words, value, votes in (
            ("Agree", 1, label.votes_up),
            ("Disagree", -1, label.votes_down),
        ):
            st.button(
                f"{words} ({votes})",
                key=f"{words}_{label.id}",
                on_click=_vote,
                args=(book, label.id, value, author),
            )
        with st.popover("Edit"), st.form(f"edit_{label.id}", border=False):
            text = st.text_area("In better words", value=label.text, key=f"better_{label.id}")
            name = st.text_input("Your name", value=author, key=f"edit_by_{label.id}")
            st.caption(
                "Your words take the label's place."
                if label.method in (BY_HAND, EDITED)
                else "Your words stand beside the explanation, and are shown first."
            )
            left, right = st.columns(2)
            if left.form_submit_button("Save"):
                _save(lambda: book.edit(label.id, text, author=name), name)
            if right.form_submit_button("Remove"):
                _save(lambda: book.delete(label.id), None)


def _vote(book: LabelBook, label_id: int, value: Literal[-1, 1], author: str) -> None:
    if not author:
        st.session_state["pending_vote"] = label_id, value
        return
    try:
        book.vote(label_id, value, author=author)
    except SaelabError as error:
        st.session_state["vote_problem"] = str(error)


def _name_voter(book: LabelBook) -> None:
    if author := st.session_state["voter"].strip():
        st.session_state[AUTHOR_KEY] = author
        # Enter and leaving the box both call this.
        if pending := st.session_state.pop("pending_vote", None):
            label_id, value = pending
            _vote(book, label_id, value, author)


def _explain(folder: Path, feature: int, endpoint: str) -> None:
    from saelab.explain.config import ExplainConfig, ModelOptions
    from saelab.explain.run import explain_dictionary

    model = os.environ.get(ENDPOINT_MODEL_VARIABLE)
    asked = ModelOptions(endpoint=endpoint, model=model)
    with st.spinner(f"Asking {model or endpoint} to explain feature {feature}, and to judge …"):
        _save(
            lambda: explain_dictionary(folder, ExplainConfig(features=(feature,), asked=asked)),
            None,
        )


def _draw_sharing(
    entry: DictionaryEntry, store: FeatureStore, feature: int, labels: Sequence[Label]
) -> None:
    file = f"{entry.name.replace('/', '_')}_feature_{feature}"
    given = (entry.name, store, feature, labels)
    addresses = neuronpedia_addresses(context.run_index())
    served = next((key for key, known in addresses.items() if known == entry), None)
    draw_sharing(
        context.link_params(entry, f=str(feature)),
        "/".join([*served, str(feature)]) if served else "",
        [
            SharedFile("Page as HTML", f"{file}.html", lambda: feature_html(*given), HTML_NOTE),
            SharedFile("Data as JSON", f"{file}.json", lambda: feature_json(*given)),
        ],
    )


@st.fragment
def _show_examples(entry: DictionaryEntry, feature: int, maximum: float, steps: Any) -> None:
    """Draw the chosen list; changing it draws nothing else again but the steps, which keep it."""
    st.header("Examples")
    store = context.require_store(entry)
    chosen, window, view = _draw_controls(entry, of_rows=counted(store) == "rows")
    _draw_steps(steps, entry, store, feature)
    record = store.feature(feature, WINDOWS[window])
    _show_context(store, feature, view)
    st.caption(plain(LISTS[chosen]))
    lists = {"Top": record.top_examples, "Random": record.random_positives}
    if chosen in lists:
        _show_list(lists[chosen], maximum, view)
    elif chosen == "Quantiles":
        if not record.quantile_groups:
            show_note("Too few contexts to divide into strata.")
        for index, group in enumerate(record.quantile_groups):
            st.markdown(f"**{plain(group_heading(group, highest=index == 0))}**")
            _show_list(group.examples, maximum, view, with_legend=index == 0)
    else:
        st.markdown("**Where a neighbour is active**")
        _show_list(record.near_misses, maximum, view)
        st.markdown("**Any context without it**")
        _show_list(record.random_silent, maximum, view)


def _draw_controls(entry: DictionaryEntry, *, of_rows: bool) -> tuple[str, str, ExampleView]:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        control = st.segmented_control
        chosen = url_state.choice(control, "List", list(LISTS), param="tab", required=True)
        window = "full"
        if not of_rows:
            window = url_state.choice(
                control,
                "Tokens on either side",
                list(WINDOWS),
                param="window",
                default="±24",
                required=True,
            )
        values = st.toggle("Show values", key="feature_values", help="Print the activations.")
        repeats = st.toggle(
            "Hide repeats", value=True, key="feature_repeats", help="Leave out equal windows."
        )
        own_scale = st.toggle(
            "Own scale",
            key="feature_own_scale",
            help="Colour each example from 0 to its own maximum instead of the feature's.",
        )
    view = ExampleView(
        show_values=values,
        hide_repeats=repeats,
        own_scale=own_scale,
        folders=context.run_index().roots,
        of_rows=of_rows,
        href=lambda feature: context.feature_href(feature, entry),
        context_href=None if of_rows else _context_href,
    )
    return chosen, window, view


def _context_href(sequence: int) -> str:
    """This page with a context opened above its list."""
    shown = {k: v for k, v in st.query_params.to_dict().items() if k != "context"}
    return f"feature?{urlencode({**shown, 'context': str(sequence)})}"


def _show_context(store: FeatureStore, feature: int, view: ExampleView) -> None:
    """The whole of the context that the address names, if any, and the ends of those beside it."""
    sequence = url_state.read("context", -1, url_state.count)
    if not 0 <= sequence < store.n_sequences:
        return
    record = store.feature(feature, None)
    groups = [group.examples for group in record.quantile_groups]
    shown = [*record.top_examples, *record.random_positives, *chain(*groups)]
    example = next((e for e in shown if e.sequence == sequence), None)
    with st.container(border=True):
        st.markdown(f"**Context {sequence:,}, all of it, and what is read before and after**")
        before, after = (
            "".join(store.context_pieces(other).texts) if 0 <= other < store.n_sequences else ""
            for other in (sequence - 1, sequence + 1)
        )
        whole = example or store.context_pieces(sequence)
        values = whole.activations.tolist()
        maximum = max(record.max_act, *values)
        row = token_row(whole.texts, values, maximum, show_values=view.show_values)
        edges = [
            f'<div class="meta ctx">{visible(text)}</div>'
            for text in (f"… {before[-EDGE:]}", f"{after[:EDGE]} …")
        ]
        st.html(tokens_page([edges[0], row, edges[1]]))
        if example is None:
            st.caption("The store holds no activations of this feature in this context.")
        shown = {k: v for k, v in st.query_params.to_dict().items() if k != "context"}
        st.page_link(FEATURE_PAGE, label="Close", query_params=shown)


def _show_list(
    examples: Sequence[Example], maximum: float, view: ExampleView, *, with_legend: bool = True
) -> None:
    if not examples:
        show_note("There are none.")
        return
    st.html(examples_html(examples, maximum, view, with_legend=with_legend))
    hidden = len(examples) - len(list(distinct(examples, view.hide_repeats)))
    if hidden:
        st.caption(f"{hidden} repeated windows are hidden.")


def _show_neighbours(entry: DictionaryEntry, record: FeatureRecord, store: FeatureStore) -> None:
    st.header("Neighbours")
    table, labels = store.table(), context.label_texts(store)

    def listed(title: str, definition: str, field: str) -> tuple[str, str, list[Any]]:
        near = getattr(record, field)[:MOST_NEIGHBOURS]
        on = ("" if n.n_both is None else f" on {n.n_both:,} {counted(store)}" for n in near)
        return (
            title,
            definition,
            [
                (
                    context.feature_href(n.feature, entry),
                    f"{n.feature} · {n.value:.2f}{where}",
                    about(table, labels, n.feature),
                )
                for n, where in zip(near, on, strict=True)
            ],
        )

    st.html(link_columns([listed(title, *kind) for title, kind in NEIGHBOUR_LISTS.items()]))


def _show_label_forms(feature: int, book: LabelBook, note: Note | None) -> None:
    st.header("Label and notes")
    if note is not None:
        text = "\n".join(visible_text(line) if line else "" for line in note.text.split("\n"))
        st.html(f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{escape(text)}</div>')
        st.caption(plain(f"note by {visible_text(note.author)}, {note.created[:10]}"))
    known_author = str(st.session_state.get(AUTHOR_KEY, ""))
    left, right = st.columns(2)
    with left, st.form(f"label_{feature}", clear_on_submit=True):
        words = st.text_input(f"New label, at most {MAX_LABEL_WORDS} words", key=f"text_{feature}")
        author = st.text_input("Your name", value=known_author, key=f"label_by_{feature}")
        if st.form_submit_button("Save label"):
            _save(lambda: book.add(feature, words, author=author), author)
    with right, st.form(f"note_{feature}"):
        body = st.text_area(
            "Note", value=note.text if note else "", key=f"note_text_{feature}", height=90
        )
        writer = st.text_input("Your name", value=known_author, key=f"note_by_{feature}")
        if st.form_submit_button("Save note"):
            _save(lambda: book.write_note(feature, body, author=writer), writer)
    st.caption(
        "Labels and notes lie in a file of their own beside the store; building the store "
        "again keeps them."
    )


def _save(write: Callable[[], object], author: str | None) -> None:
    try:
        write()
    except SaelabError as error:
        show_problem(str(error))
        return
    if author:
        st.session_state[AUTHOR_KEY] = author
    st.rerun()


if __name__ == "__main__":
    run_page(render)
