"""The Prompt page's third part: what each feature adds to a chosen next token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st
from jaxtyping import Float, Int

from .. import url_state
from ..live import LivePage
from .html_tables import linked_table, short_label
from .live_figures import repr_token, signed_bars
from .page_parts import download_table, format_number, plain, show_figure, show_note
from .prompt_reading import say_what_was_cut, sums_by_piece, text_box
from .token_html import visible_text

if TYPE_CHECKING:
    from saelab.live.attribution import Attribution
    from saelab.model.gradients import Quantity

QUANTITIES: dict[Quantity, str] = {"logit": "logit", "log_probability": "log-probability (nats)"}
MOST_BARS = 10
MOST_ROWS = 40
EXAMPLE_TEXT = "The President of the United"
OTHER = -1


def draw_attribution(page: LivePage) -> None:
    """Text, the next token to explain, and the features that speak for and against it."""
    text = text_box("Text", "attribution_text", "text", EXAMPLE_TEXT)
    if not text.strip():
        show_note("Type a text to explain what comes next.")
        return
    target, quantity = _choose(page, text)
    if target is None:
        show_note("Type the token to explain; a word in the middle of a text starts with a space.")
        return
    found = page.attribute(text, target, quantity)
    say_what_was_cut(found.reading)
    token = repr_token(page.session.token_strings([target])[0])
    st.markdown(
        plain(
            f"The {QUANTITIES[quantity]} of {token} after this text is {found.value:.4g}. Gradient "
            f"· activation adds up to {_total(found):.4g}: features {found.pair.sum():+.3g}, "
            f"decoder bias {found.bias:+.3g}, reconstruction error {found.error:+.3g}, left-out "
            f"positions {found.left_out:+.3g}."
        )
    )
    latent, total = found.by_feature()
    order = np.argsort(-np.abs(total), kind="stable")
    if not len(order):
        show_note("No feature is active in this text.")
        return
    _show_features(page, latent[order], total[order], token, quantity)
    _show_positions(page, found, token, quantity)
    _show_table(page, found, latent[order], total[order])


def _total(found: Attribution) -> float:
    return float(found.pair.sum()) + found.bias + found.error + found.left_out


def _choose(page: LivePage, text: str) -> tuple[int | None, Quantity]:
    """The token to explain, from the likeliest or typed, and what of it."""
    likeliest = page.next_tokens(text)
    known = {id_: f"{repr_token(token)}  {share:.1%}" for id_, token, share in likeliest}
    left, middle, right = st.columns([3, 2, 3], vertical_alignment="bottom")
    given = url_state.read("next", likeliest[0][0], url_state.count)
    if given not in known:
        try:
            known[given] = repr_token(page.session.token_strings([given])[0])
        except (IndexError, OverflowError, TypeError):
            given = likeliest[0][0]
    with left:
        choices = [*known, OTHER]
        if st.session_state.get("attribution_next") not in [None, *choices]:
            del st.session_state["attribution_next"]
        url_state.bind(
            "attribution_next",
            "next",
            likeliest[0][0],
            {str(choice): choice for choice in choices}.__getitem__,
        )
        target: int | None = st.selectbox(
            "Next token",
            choices,
            key="attribution_next",
            format_func=lambda id_: "another, typed" if id_ == OTHER else known[id_],
        )
        url_state.publish("next", target, likeliest[0][0])
    with middle:
        if target == OTHER:
            url_state.bind("attribution_typed", "typed", "")
            typed = st.text_input("Token", key="attribution_typed", max_chars=40)
            url_state.publish("typed", typed, "")
            target = page.session.token_of(typed) if typed else None
    with right:
        url_state.bind("attribution_of", "of", "logit", url_state.one_of(*QUANTITIES))
        quantity: Quantity = st.radio(
            "Of its",
            list(QUANTITIES),
            format_func=QUANTITIES.__getitem__,
            horizontal=True,
            key="attribution_of",
        )
        url_state.publish("of", quantity, "logit")
    return target, quantity


def _show_features(
    page: LivePage,
    latent: Int[np.ndarray, " features"],
    total: Float[np.ndarray, " features"],
    token: str,
    quantity: Quantity,
) -> None:
    """The largest attributions of either sign."""
    from saelab.live.attribution import DEFINITION

    raising, lowering = (np.flatnonzero(sign * total > 0)[:MOST_BARS] for sign in (1, -1))
    show_figure(
        signed_bars(
            name="attribution",
            title=f"Features for and against {token}",
            axis=f"attribution to the {QUANTITIES[quantity]}",
            caption=DEFINITION.format(quantity=QUANTITIES[quantity]),
            rows=[
                (f"{latent[p]} {short_label(page.label(int(latent[p])))}", float(total[p]))
                for p in [*raising, *lowering[::-1]]
            ],
            positive="features raise it",
            negative="features lower it",
        ),
        "attribution_figure",
    )


def _show_table(
    page: LivePage,
    found: Attribution,
    latent: Int[np.ndarray, " features"],
    total: Float[np.ndarray, " features"],
) -> None:
    """All features, in the order of the size of their attribution."""
    st.subheader("All features")
    peaks = [_strongest(found, int(feature)) for feature in latent]
    columns: dict[str, list[object]] = {
        "feature": latent.tolist(),
        "attribution": total.tolist(),
        "most at the token": [visible_text(found.reading.tokens[place]) for place, _ in peaks],
        "there": [value for _, value in peaks],
        "density": page.numbers.density[latent].tolist(),
        "label or top tokens": [visible_text(page.label(int(feature))) for feature in latent],
    }
    titles = list(columns)[1:]
    rows = [
        (
            int(feature),
            page.href(int(feature)),
            [format_number(columns[title][place]) for title in titles],
        )
        for place, feature in enumerate(latent[:MOST_ROWS])
    ]
    cut = f"the first {MOST_ROWS} of " if len(latent) > MOST_ROWS else ""
    st.html(linked_table(f"By size of their attribution: {cut}{len(latent):,}", titles, rows))
    with st.expander("All of them, and a file"):
        download_table("attribution", columns, "attribution_table")


def _strongest(found: Attribution, latent: int) -> tuple[int, float]:
    """Where a feature's attribution is largest in size, and how large."""
    mine = np.flatnonzero(found.reading.latent == latent)
    best = mine[np.abs(found.pair[mine]).argmax()]
    return int(found.reading.position[best]), float(found.pair[best])


def _show_positions(page: LivePage, found: Attribution, token: str, quantity: Quantity) -> None:
    texts = page.store.vocabulary.pieces(found.reading.ids).texts
    sums = sums_by_piece(found.by_position(), found.reading, page.store.vocabulary)
    show_figure(
        signed_bars(
            name="attribution_by_token",
            title=f"Where in the text the features speak for {token}",
            axis=f"attribution to the {QUANTITIES[quantity]}",
            caption="The attributions of all features active at a token, added up; the token is "
            "where the features are active, the text runs from top to bottom.",
            rows=[
                (f"{place} {text}", value)
                for place, (text, value) in enumerate(zip(texts, sums, strict=True))
            ],
            positive="tokens raise it",
            negative="tokens lower it",
        ),
        "attribution_positions",
    )
