"""Feature: everything known of one feature, from its numbers to its provenance."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import random
from collections.abc import Sequence
from urllib.parse import urlencode

import streamlit as st

from saelab.errors import SaelabError
from saelab.features.labels import MAX_LABEL_WORDS, Label, LabelBook
from saelab.features.reader import FeatureStore
from saelab.features.records import Example, FeatureRecord, Neighbour

from .. import url_state
from ..context import (
    feature_link,
    link_params,
    open_labels,
    require_dictionary,
    require_store,
    staleness_of,
)
from ..run_index import DictionaryEntry
from ..widgets.export import feature_html, feature_json
from ..widgets.feature_html import (
    ExampleView,
    distinct,
    examples_html,
    group_heading,
    logit_tables,
    number_strip,
    numbers_of,
)
from ..widgets.feature_table import tokens_text
from ..widgets.figures import activation_histogram, logit_histogram
from ..widgets.page_parts import (
    FEATURE_PAGE,
    plain,
    run_page,
    show_figure,
    show_note,
    show_problem,
)

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
            st.page_link(f"{page}.py", label=label, query_params=params)
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


LISTS = {
    "Top": "Contexts with the highest maxima, one window for each context, no two alike. The "
    "strongest examples flatter a feature: compare them with the random ones.",
    "Quantiles": "Contexts drawn from strata of equally many contexts, from the strongest down; a "
    "stratum holds its lower edge and not its upper one, but for the highest.",
    "Random": "Tokens drawn uniformly from all on which the feature is active: an unbiased sample, "
    "which the top examples are not.",
    "Near misses": "Contexts in which the feature is silent: first where a feature with a similar "
    "decoder row is active, then any.",
}
WINDOWS: dict[str, int | None] = {"±8": 8, "±24": 24, "full": None}


@st.fragment
def show_examples(entry: DictionaryEntry, feature: int, maximum: float) -> None:
    """Draw the chosen list; changing it draws nothing else again."""
    st.header("Examples")
    chosen, window, view = draw_controls()
    record = require_store(entry).feature(feature, WINDOWS[window])
    st.caption(plain(LISTS[chosen]))
    if chosen == "Top":
        show_list(record.top_examples, maximum, view)
    elif chosen == "Quantiles":
        show_groups(record, maximum, view)
    elif chosen == "Random":
        show_list(record.random_positives, maximum, view)
    else:
        st.markdown("**Where a neighbour is active**")
        show_list(record.near_misses, maximum, view)
        st.markdown("**Any context without it**")
        show_list(record.random_silent, maximum, view)


def draw_controls() -> tuple[str, str, ExampleView]:
    """Which list, how wide, and how it is shown."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        url_state.bind("feature_tab", "tab", "Top", url_state.one_of(*LISTS))
        chosen = st.segmented_control("List", list(LISTS), key="feature_tab", required=True)
        url_state.publish("tab", chosen, "Top")
        url_state.bind("feature_window", "window", "±24", url_state.one_of(*WINDOWS))
        window = st.segmented_control(
            "Tokens on either side", list(WINDOWS), key="feature_window", required=True
        )
        url_state.publish("window", window, "±24")
        values = st.toggle("Show values", key="feature_values", help="Print the activations.")
        repeats = st.toggle(
            "Hide repeats", value=True, key="feature_repeats", help="Leave out equal windows."
        )
        own = st.toggle(
            "Own scale",
            key="feature_own_scale",
            help="Colour each example from 0 to its own maximum instead of the feature's.",
        )
    view = ExampleView(show_values=values, hide_repeats=repeats, own_scale=own)
    return chosen or "Top", window or "±24", view


def show_groups(record: FeatureRecord, maximum: float, view: ExampleView) -> None:
    """The strata, each under its range."""
    if not record.quantile_groups:
        show_note("Too few contexts to divide into strata.")
    for place, group in enumerate(record.quantile_groups):
        st.markdown(f"**{plain(group_heading(group, highest=place == 0))}**")
        show_list(group.examples, maximum, view, with_legend=place == 0)


def show_list(
    examples: Sequence[Example], maximum: float, view: ExampleView, *, with_legend: bool = True
) -> None:
    """One list as one block of HTML."""
    if not examples:
        show_note("There are none.")
        return
    st.html(examples_html(examples, maximum, view, with_legend=with_legend))
    hidden = len(examples) - len(list(distinct(examples, view.hide_repeats)))
    if hidden:
        st.caption(f"{hidden} repeated windows are hidden.")


MOST_NEIGHBOURS = 8
MOST_TOKENS = 4


def show_neighbours(record: FeatureRecord, store: FeatureStore, book: LabelBook) -> None:
    """Four lists side by side, each with its definition."""
    st.header("Neighbours")
    labels = {feature: label.text for feature, label in book.latest().items()}
    lists = (
        ("Decoder", "cosine of decoder rows: what it writes", record.decoder_neighbours),
        ("Encoder", "cosine of encoder columns: what it reads", record.encoder_neighbours),
        (
            "Active together",
            "Jaccard index: tokens with both over tokens with either",
            record.coactive_jaccard,
        ),
        (
            "Correlated",
            "Pearson correlation of activations over all tokens counted",
            record.coactive_pearson,
        ),
    )
    for column, (title, definition, neighbours) in zip(st.columns(4), lists, strict=True):
        with column:
            st.markdown(f"##### {title}")
            st.caption(plain(definition))
            show_links(neighbours, store, labels)


def show_links(
    neighbours: Sequence[Neighbour], store: FeatureStore, labels: dict[int, str]
) -> None:
    """Links to the nearest features, with their value and what they are about."""
    if not neighbours:
        st.caption("none")
    tokens = store.table()["top_tokens"]
    for neighbour in neighbours[:MOST_NEIGHBOURS]:
        about = labels.get(neighbour.feature) or tokens_text(tokens[neighbour.feature], MOST_TOKENS)
        both = "" if neighbour.n_both is None else f" on {neighbour.n_both:,} tokens"
        feature_link(
            neighbour.feature, f"{neighbour.feature} · {neighbour.value:.2f}{both} · {about}"
        )


AUTHOR_KEY = "label_author"


def show_labels(feature: int, book: LabelBook) -> None:
    """The labels with who wrote them, and boxes to write a label and a note."""
    st.header("Label and notes")
    for label in book.of(feature):
        show_label(label, book)
    note = book.note(feature)
    if note is not None:
        st.markdown(plain(note.text))
        st.caption(plain(f"note by {note.author}, {note.created[:10]}"))
    left, right = st.columns(2)
    with left, st.form(f"label_{feature}", clear_on_submit=True):
        text = st.text_input(f"New label, at most {MAX_LABEL_WORDS} words", key=f"text_{feature}")
        author = st.text_input("Your name", value=_author(), key=f"label_by_{feature}")
        if st.form_submit_button("Save label"):
            _save(lambda: book.add(feature, text, author=author), author)
    with right, st.form(f"note_{feature}"):
        body = st.text_area(
            "Note", value=note.text if note else "", key=f"note_text_{feature}", height=90
        )
        writer = st.text_input("Your name", value=_author(), key=f"note_by_{feature}")
        if st.form_submit_button("Save note"):
            _save(lambda: book.write_note(feature, body, author=writer), writer)
    st.caption(
        "Labels and notes lie in a file of their own beside the store; building the store "
        "again keeps them."
    )


def show_label(label: Label, book: LabelBook) -> None:
    """One label with its origin and a way to remove it."""
    score = "" if label.score is None else f", score {label.score:.2g}"
    text, remove = st.columns([6, 1], vertical_alignment="center")
    with text:
        st.markdown(f"**{plain(label.text)}**")
        st.caption(plain(f"{label.author}, {label.method}{score}, {label.created[:10]}"))
    if remove.button("Remove", key=f"remove_{label.id}"):
        _save(lambda: book.delete(label.id), None)


def _author() -> str:
    return str(st.session_state.get(AUTHOR_KEY, ""))


def _save(write, author: str | None) -> None:
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
