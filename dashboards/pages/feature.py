"""Feature: everything known of one feature, from its numbers to its provenance."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import random
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

import streamlit as st

from saelab.errors import SaelabError
from saelab.features.labels import MAX_LABEL_WORDS, Label, LabelBook
from saelab.features.reader import FeatureStore
from saelab.features.records import Example, FeatureRecord

from .. import context, url_state
from ..run_index import DictionaryEntry
from ..widgets.feature_html import (
    NEIGHBOUR_LISTS,
    ExampleView,
    counted,
    distinct,
    examples_html,
    feature_html,
    feature_json,
    group_heading,
    logit_tables,
    number_strip,
    provenance_table,
)
from ..widgets.feature_table import about
from ..widgets.figures import activation_histogram, logit_histogram
from ..widgets.page_parts import FEATURE_PAGE, plain, run_page, show_figure, show_note, show_problem
from ..widgets.token_html import short_label

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
AUTHOR_KEY = "label_author"


def render() -> None:
    """Draw the page."""
    entry = context.require_dictionary()
    store = context.require_store(entry)
    feature = _chosen_feature(store)
    if feature is None:
        return
    record = store.feature(feature)
    book = context.open_labels(store)
    _show_head(entry, store, record, book)
    if record.n_active == 0:
        show_note(
            f"Feature {feature} was never active on the {store.n_tokens:,} {counted(store)} "
            "counted. What its weights alone say is below."
        )
    st.html(number_strip(record, of_rows=counted(store) == "rows"))
    _show_charts(record, store)
    if record.n_active:
        _show_examples(entry, feature, record.max_act)
    _show_neighbours(record, store)
    _show_labels(feature, book)
    with st.expander("Provenance"):
        st.html(provenance_table(entry.name, store))


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
    entry: DictionaryEntry, store: FeatureStore, record: FeatureRecord, book: LabelBook
) -> None:
    st.title(plain(f"Feature {record.id}"))
    labels = book.of(record.id)
    if labels:
        _show_label(labels[0])
    else:
        tokens = ", ".join(repr(short_label(text)) for text in record.top_tokens[:5])
        st.caption(plain(f"No label yet. Strongest on {tokens}" if tokens else "No label yet."))
    badges = " ".join(f":orange-badge[{flag}]" for flag in record.flags)
    st.markdown(f":blue-badge[{plain(entry.name)}] {badges}")
    stale = context.staleness_of(store, entry)
    if stale:
        show_problem(stale)
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
                query_params=context.link_params(entry, f=str(min(max(target, 0), last))),
            )
        st.page_link("explore.py", label="All features", query_params=context.link_params(entry))
        for page, label in (("prompt.py", "Try text"), ("steer.py", "Steer")):
            st.page_link(page, label=label, query_params=context.link_params(entry, f=str(feature)))
        with st.popover("Share"):
            _show_sharing(entry, store, feature, labels)
        # A box with the feature's number; another number opens that feature.
        url_state.bind("feature_number", "f", feature, url_state.count)
        number = st.number_input(
            "Feature number", 0, last, key="feature_number", label_visibility="collapsed", width=130
        )
        if number != feature:
            url_state.publish("f", number, None)
            st.rerun()


def _show_sharing(
    entry: DictionaryEntry, store: FeatureStore, feature: int, labels: Sequence[Label]
) -> None:
    st.markdown("Address of this page")
    base = (st.context.url or "").split("?")[0]
    params = urlencode(context.link_params(entry, f=str(feature)))
    st.code(f"{base}?{params}", language=None, wrap_lines=True)
    for title, content, kind, mime, note in (
        (
            "Page as HTML",
            feature_html,
            "html",
            "text/html",
            "One file without scripts that opens anywhere, offline.",
        ),
        ("Data as JSON", feature_json, "json", "application/json", None),
    ):
        st.download_button(
            title,
            lambda content=content: content(entry.name, store, feature, labels),
            file_name=f"{entry.name.replace('/', '_')}_feature_{feature}.{kind}",
            mime=mime,
            on_click="ignore",
            help=note,
        )


def _show_charts(record: FeatureRecord, store: FeatureStore) -> None:
    left, middle, right = st.columns(3)
    with left:
        linear = st.session_state.get("feature_linear", False)
        chart = activation_histogram(record, counted(store), log_counts=not linear)
        if chart is not None:
            show_figure(chart, "activations")
            st.toggle("Linear counts", key="feature_linear")
    lens = record.logit_lens
    with middle:
        if lens is not None:
            show_figure(logit_histogram(lens), "logits")
    with right:
        st.markdown("##### Logits")
        if lens is None:
            show_note(f"No logits: {store.manifest.get('logit_lens') or 'none were computed'}.")
        else:
            st.html(logit_tables(lens))
            st.caption(plain(store.manifest.get("logit_lens") or ""))


@st.fragment
def _show_examples(entry: DictionaryEntry, feature: int, maximum: float) -> None:
    """Draw the chosen list; changing it draws nothing else again."""
    st.header("Examples")
    store = context.require_store(entry)
    chosen, window, view = _draw_controls(of_rows=counted(store) == "rows")
    record = store.feature(feature, WINDOWS[window])
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


def _draw_controls(*, of_rows: bool) -> tuple[str, str, ExampleView]:
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
    )
    return chosen, window, view


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


def _show_neighbours(record: FeatureRecord, store: FeatureStore) -> None:
    st.header("Neighbours")
    table, labels = store.table(), context.label_texts(store)
    lists = NEIGHBOUR_LISTS.items()
    for column, (title, (definition, field)) in zip(st.columns(4), lists, strict=True):
        with column:
            st.markdown(f"##### {title}")
            st.caption(plain(definition))
            neighbours = getattr(record, field)
            if not neighbours:
                st.caption("none")
            for near in neighbours[:MOST_NEIGHBOURS]:
                both = "" if near.n_both is None else f" on {near.n_both:,} {counted(store)}"
                words = about(table, labels, near.feature)
                words = f"{near.feature} · {near.value:.2f}{both} · {words}"
                context.feature_link(near.feature, words)


def _show_labels(feature: int, book: LabelBook) -> None:
    st.header("Label and notes")
    for label in book.of(feature):
        text, remove = st.columns([6, 1], vertical_alignment="center")
        with text:
            _show_label(label)
        if remove.button("Remove", key=f"remove_{label.id}"):
            _save(lambda label=label: book.delete(label.id), None)
    note = book.note(feature)
    if note is not None:
        st.markdown(plain(note.text))
        st.caption(plain(f"note by {note.author}, {note.created[:10]}"))
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


def _show_label(label: Label) -> None:
    score = "" if label.score is None else f", score {label.score:.2g}"
    st.markdown(f"**{plain(label.text)}**")
    st.caption(plain(f"{label.author}, {label.method}{score}, {label.created[:10]}"))


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
