"""A text typed on a feature's own page, and where in it the feature is active."""

from __future__ import annotations

import streamlit as st

from saelab.features.reader import FeatureStore

from .. import live
from ..run_index import DictionaryEntry
from .page_parts import plain, show_note
from .token_html import legend, short, token_row, tokens_page


@st.fragment
def try_text(entry: DictionaryEntry, store: FeatureStore, feature: int) -> None:
    """Draw the box; the model is loaded when there is a text, and nothing else is drawn again."""
    with st.expander("Try a text on this feature", expanded="text" in st.query_params):
        text = live.text_box("Text", "feature_text", "text", "", height=70)
        st.button("Show its activations", key="feature_text_show")
        if not text.strip():
            return
        page = live.open_live_page(entry, store)
        reading = page.read(text)
        live.say_what_was_cut(reading)
        whole = live.pieced(reading, store.vocabulary)
        track = whole.track(feature)
        active, peak = sum(value > 0 for value in track), max(track, default=0.0)
        if not active:
            show_note(f"Feature {feature} is silent on this text.")
            return
        share = page.numbers.maximum[feature]
        st.markdown(
            plain(
                f"Active on {active} of {int(whole.counted.sum())} tokens, largest activation "
                f"{short(peak)}"
                + (f", {100 * peak / share:.0f} % of its maximum." if share > 0 else ".")
            )
        )
        maximum = float(max(share, peak))
        row = token_row(whole.tokens, track, maximum, show_values=True)
        st.html(tokens_page([legend(maximum, with_anchor=False), row]))
