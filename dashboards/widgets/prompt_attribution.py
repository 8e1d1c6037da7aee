"""The Prompt page's third mode: what each feature adds to a chosen next token."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st
from jaxtyping import Float, Int

from .. import url_state
from ..live import LivePage, say_what_was_cut, show_feature_table, text_box
from .figures import repr_token, signed_bars
from .page_parts import plain, show_figure, show_note
from .token_html import short_label, visible_text

if TYPE_CHECKING:
    from saelab.live.attribution import Attribution
    from saelab.model.gradients import Quantity

QUANTITIES: dict[Quantity, str] = {"logit": "logit", "log_probability": "log-probability (nats)"}
MOST_BARS = 10
EXAMPLE_TEXT = "The President of the United"
TYPED = -1
"""Stands for a token that is typed, among the ids to choose from."""


def draw_attribution(page: LivePage) -> None:
    """Text, the next token to explain, and the features that speak for and against it."""
    from saelab.live.attribution import DEFINITION

    text = text_box("Text", "attribution_text", "text", EXAMPLE_TEXT)
    if not text.strip():
        show_note("Type a text to explain what comes next.")
        return
    target, quantity = _choose(page, text)
    if target is None:
        show_note("Type the token to explain; a word in the middle of a text starts with a space.")
        return
    result = page.attribute(text, target, quantity)
    say_what_was_cut(result.reading)
    token, measured = (
        repr_token(page.session.model.token_strings([target])[0]),
        QUANTITIES[quantity],
    )
    total = float(result.pair.sum()) + result.bias + result.error + result.left_out
    st.markdown(
        plain(
            f"The {measured} of {token} after this text is {result.value:.4g}. Gradient "
            f"· activation adds up to {total:.4g}: features {result.pair.sum():+.3g}, "
            f"decoder bias {result.bias:+.3g}, reconstruction error {result.error:+.3g}, left-out "
            f"positions {result.left_out:+.3g}."
        )
    )
    latent, sums = result.by_feature()
    order = np.argsort(-np.abs(sums), kind="stable")
    if not len(order):
        show_note("No feature is active in this text.")
        return
    latent, sums = latent[order], sums[order]
    raising, lowering = (np.flatnonzero(sign * sums > 0)[:MOST_BARS] for sign in (1, -1))
    show_figure(
        signed_bars(
            name="attribution",
            title=f"Features for and against {token}",
            axis=f"attribution to the {measured}",
            caption=DEFINITION.format(quantity=measured),
            rows=[
                (f"{latent[i]} {short_label(page.label(int(latent[i])))}", float(sums[i]))
                for i in [*raising, *lowering[::-1]]
            ],
            positive="features raise it",
            negative="features lower it",
        ),
        "attribution_figure",
    )
    pieces = page.store.vocabulary.pieces(result.reading.ids)
    by_position = result.by_position()
    show_figure(
        signed_bars(
            name="attribution_by_token",
            title=f"Where in the text the features speak for {token}",
            axis=f"attribution to the {measured}",
            caption="The attributions of all features active at a token, added up; the token is "
            "where the features are active, the text runs from top to bottom.",
            rows=[
                (f"{index} {piece}", float(by_position[low:high].sum()))
                for index, (piece, (low, high)) in enumerate(
                    zip(pieces.texts, pairwise(pieces.starts), strict=True)
                )
            ],
            positive="tokens raise it",
            negative="tokens lower it",
            marks="token",
        ),
        "attribution_positions",
    )
    _show_table(page, result, latent, sums)


def _choose(page: LivePage, text: str) -> tuple[int | None, Quantity]:
    """The token to explain, from the likeliest or typed, and what of it."""
    likeliest = page.next_tokens(text)
    known = {id_: f"{repr_token(token)}  {share:.1%}" for id_, token, share in likeliest}
    left, middle, right = st.columns([3, 2, 3], vertical_alignment="bottom")
    given = url_state.read("next", likeliest[0][0], url_state.count)
    if given not in known:
        # A number in the address may be no token.
        with suppress(IndexError, OverflowError, TypeError):
            known[given] = repr_token(page.session.model.token_strings([given])[0])
    target: int | None = url_state.choice(
        left.selectbox, "Next token", {**known, TYPED: "another, typed"}, param="next"
    )
    if target == TYPED:
        typed = url_state.widget(
            middle.text_input, "Token", param="typed", default="", max_chars=40
        )
        target = page.session.token_of(typed) if typed else None
    quantity = url_state.choice(right.radio, "Of its", QUANTITIES, param="of", horizontal=True)
    return target, quantity


def _show_table(
    page: LivePage,
    result: Attribution,
    latent: Int[np.ndarray, " features"],
    sums: Float[np.ndarray, " features"],
) -> None:
    """All features, in the order of the size of their attribution."""
    st.subheader("All features")
    reading, peaks = result.reading, []
    for feature in latent:
        pairs = np.flatnonzero(reading.latent == feature)
        peaks.append(pairs[np.abs(result.pair[pairs]).argmax()])
    columns = {
        "attribution": sums.tolist(),
        "most at the token": [visible_text(reading.tokens[reading.position[i]]) for i in peaks],
        "there": result.pair[peaks].tolist(),
        "density, %": (100 * page.numbers.density[latent]).tolist(),
    }
    key = "attribution_table"
    show_feature_table(
        page, "By size of their attribution", latent, columns, key, name="attribution"
    )
