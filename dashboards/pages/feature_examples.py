"""The examples of a feature: four lists, three widths."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from saelab.features.records import Example, FeatureRecord

from .. import url_state
from ..context import require_store
from ..feature_html import ExampleView, distinct, examples_html, group_heading
from ..page_parts import plain, show_note
from ..run_index import DictionaryEntry

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
