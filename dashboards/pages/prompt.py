"""Prompt: what a dictionary sees in text that somebody types."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import streamlit as st

from .. import url_state
from ..context import require_dictionary, require_store
from ..live import open_live_page
from ..widgets.page_parts import plain, run_page
from ..widgets.prompt_attribution import draw_attribution
from ..widgets.prompt_contrast import draw_contrast
from ..widgets.prompt_reading import draw_reading

MODES = {
    "read": "Read a text",
    "contrast": "Contrast two sets",
    "attribute": "Explain a next token",
}


def render() -> None:
    """Draw the page."""
    entry = require_dictionary()
    store = require_store(entry)
    st.title("Prompt")
    url_state.bind("prompt_mode", "mode", "read", url_state.one_of(*MODES))
    mode = st.radio(
        "What to do",
        list(MODES),
        format_func=MODES.__getitem__,
        horizontal=True,
        key="prompt_mode",
        label_visibility="collapsed",
    )
    url_state.publish("mode", mode, "read")
    page = open_live_page(entry, store)
    match mode:
        case "contrast":
            draw_contrast(page)
        case "attribute":
            draw_attribution(page)
        case _:
            draw_reading(page)
    st.caption(
        plain(
            f"{page.session.bos_rule} Positions that the dictionary was not trained on (first "
            "positions, special tokens, rows of excessive norm) do not count and show no features."
        )
    )


if __name__ == "__main__":
    run_page(render)
