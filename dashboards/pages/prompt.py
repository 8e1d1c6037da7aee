"""Prompt: what a dictionary sees in a typed text; the other modes are files of their own."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import numpy as np
import streamlit as st
from jaxtyping import Int

from saelab.live.reading import SORTS, FeatureUse, Reading, feature_use, ranked, relative
from saelab.report.page import Html

from .. import live, url_state
from ..context import require_dictionary, require_store
from ..widgets.feature_html import percent
from ..widgets.html_tables import chip, page_table
from ..widgets.page_parts import plain, run_page, show_note
from ..widgets.prompt_attribution import draw_attribution
from ..widgets.prompt_contrast import draw_contrast
from ..widgets.prompt_layers import draw_layers
from ..widgets.token_html import (
    legend,
    short,
    short_label,
    token_row,
    tokens_page,
    visible,
    visible_text,
)

MODES = {
    "read": "Read a text",
    "contrast": "Contrast two sets",
    "attribute": "Explain a next token",
    "layers": "Read through all dictionaries",
}
SORT_NAMES = {
    "relative": "share of the feature's maximum",
    "strength": "strength",
    "rarity": "rarity",
}
CHIPS_PER_TOKEN = 4
CHIP_LABEL = 16
"""Characters of a label beside a token."""
EXAMPLE_TEXT = "The President of the United States addressed Congress in December."


def render() -> None:
    """Draw the page."""
    entry = require_dictionary()
    store = require_store(entry)
    st.title("Prompt")
    mode = url_state.choice(
        st.radio, "What to do", MODES, param="mode", horizontal=True, label_visibility="collapsed"
    )
    page = live.open_live_page(entry, store)
    draw = {"contrast": draw_contrast, "attribute": draw_attribution, "layers": draw_layers}
    draw.get(mode, _draw_reading)(page)
    st.caption(
        plain(
            f"{page.session.bos_rule} Positions that the dictionary was not trained on (first "
            "positions, special tokens, rows of excessive norm) do not count and show no features."
        )
    )


def _draw_reading(page: live.LivePage) -> None:
    text = live.text_box("Text", "prompt_text", "text", EXAMPLE_TEXT)
    # Leaving the box reads it too; a button says so, and a phone has no Ctrl+Enter.
    st.button("Show its features", type="primary")
    left, right = st.columns([3, 2])
    sort = url_state.choice(
        left.radio,
        "Sort by",
        SORT_NAMES,
        param="order",
        horizontal=True,
        help=" ".join(f"{name}: {plain(SORTS[key])}." for key, name in SORT_NAMES.items()),
    )
    with right:
        ceiling = live.density_ceiling()
    if not text.strip():
        show_note("Type a text to see its active features.")
        return
    reading = page.read(text)
    live.say_what_was_cut(reading)
    whole = live.pieced(reading, page.store.vocabulary)
    use = feature_use(whole)
    order = ranked(use.latent, use.peak, page.numbers, sort, ceiling)
    hidden = len(use.latent) - len(order)
    l0 = len(reading.latent) / max(int(reading.counted.sum()), 1)
    st.markdown(
        plain(
            f"{int(reading.counted.sum())} tokens that count, {l0:.1f} active features per token, "
            f"{len(use.latent):,} different ones"
        )
        + (f"; {hidden:,} above the density ceiling are hidden." if hidden else ".")
    )
    if not len(order):
        show_note("No active feature is as rare as that: raise the density ceiling.")
        return
    _draw_highlight(page, whole, use, order)
    st.subheader("Token by token")
    _draw_tokens(page, whole, sort, ceiling)
    st.subheader("All active features")
    latent = use.latent[order]
    shares = relative(use.peak[order], page.numbers.maximum[latent])
    columns = {
        "largest activation": use.peak[order].tolist(),
        # Of a feature that was never active in the store, it is undefined.
        "share of its maximum": [s if np.isfinite(s) else None for s in shares.tolist()],
        "density, %": (100 * page.numbers.density[latent]).tolist(),
        "tokens": use.n_positions[order].tolist(),
        "at the token": [visible_text(whole.tokens[index]) for index in use.peak_position[order]],
    }
    live.show_feature_table(
        page, "Active in this text", latent, columns, "prompt_features", name="features_of_a_text"
    )


def _draw_highlight(
    page: live.LivePage, whole: Reading, use: FeatureUse, order: Int[np.ndarray, " kept"]
) -> None:
    features = use.latent[order][: live.MOST_ROWS].tolist()
    wanted = url_state.read("f", features[0], url_state.count)
    if wanted in use.latent and wanted not in features:
        features.append(wanted)
    elif wanted not in features:
        show_note(f"Feature {wanted} is not active in this text.")
    names = {f: f"{f}  {short_label(visible_text(page.label(f)))}" for f in features}
    feature = url_state.choice(
        st.selectbox,
        "Highlight",
        names,
        param="hl",
        default=wanted if wanted in features else features[0],
    )
    track = whole.track(feature)
    maximum = float(max(page.numbers.maximum[feature], *track))
    row = token_row(whole.tokens, track, maximum, show_values=True)
    st.html(tokens_page([legend(maximum, with_anchor=False), row]))


def _draw_tokens(page: live.LivePage, whole: Reading, sort: str, ceiling: float) -> None:
    rows = []
    for index, text in enumerate(whole.tokens):
        part = whole.at(index)
        latent, value = whole.latent[part], whole.value[part]
        order = ranked(latent, value, page.numbers, sort, ceiling)
        shown = "".join(
            _chip(page, int(latent[pair]), float(value[pair])) for pair in order[:CHIPS_PER_TOKEN]
        )
        if not whole.counted[index]:
            shown = '<span class="muted">does not count</span>'
        elif len(order) > CHIPS_PER_TOKEN:
            shown += f'<span class="muted">+ {len(order) - CHIPS_PER_TOKEN}</span>'
        token = Html(f'<bdi class="token">{visible(text)}</bdi>')
        rows.append([str(index), token, Html(shown)])
    st.html(
        page_table(
            f"For every token its first {CHIPS_PER_TOKEN} features by {SORT_NAMES[sort]}: number, "
            "label or top token, activation, share of the feature's maximum in the store's text "
            "(above 100 % where it is stronger than anywhere there). A click opens the feature.",
            ["#", "token", "active features"],
            rows,
        )
    )


def _chip(page: live.LivePage, feature: int, value: float) -> str:
    maximum = float(page.numbers.maximum[feature])
    share = f" · {100 * value / maximum:.0f} %" if maximum > 0 else " · new"
    density = percent(float(page.numbers.density[feature]))
    name = visible_text(page.label(feature))
    hint = f"Feature {feature}: {name}; density {density}"
    label = short_label(name, CHIP_LABEL)
    return chip(feature, page.href(feature), label, f"{short(value)}{share}", hint)


if __name__ == "__main__":
    run_page(render)
