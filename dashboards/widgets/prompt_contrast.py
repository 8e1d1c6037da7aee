"""The Prompt page's second mode: which features tell two sets of texts apart."""

from __future__ import annotations

import numpy as np
import streamlit as st

from saelab.live.contrast import DEFINITION, Contrast, contrast

from .. import url_state
from ..live import LivePage, density_ceiling, show_feature_table, text_box
from .figures import signed_bars
from .page_parts import plain, show_figure, show_note
from .token_html import short_label

MOST_TEXTS = 40
MOST_BARS = 10
ORDERS = {"difference": "difference of means", "effect": "effect size"}
EXAMPLE_A = "The treaty of peace was signed.\nOur army won the battle.\nThe navy sailed to war."
EXAMPLE_B = "The bank lent money at interest.\nTaxes and tariffs rose.\nThe Treasury paid its debt."


def draw_contrast(page: LivePage) -> None:
    """Two boxes with a text on each line, and the features that differ."""
    st.caption(plain(f"One text on each line, at most {MOST_TEXTS} in each set."))
    left, right = st.columns(2)
    with left:
        a = _texts("Set A", "contrast_a", "a", EXAMPLE_A)
    with right:
        b = _texts("Set B", "contrast_b", "b", EXAMPLE_B)
    order_box, ceiling_box = st.columns([3, 2])
    order = url_state.choice(order_box.radio, "Sort by", ORDERS, param="by", horizontal=True)
    with ceiling_box:
        ceiling = density_ceiling()
    if not a or not b:
        show_note("Give both sets at least one text.")
        return
    in_a, in_b = ([page.read(text) for text in texts] for texts in (a, b))
    sets = contrast(in_a, in_b, page.store.n_features)
    _show(page, sets, order, ceiling, (len(a), len(b)))


def _texts(label: str, key: str, param: str, default: str) -> list[str]:
    lines = text_box(label, key, param, default, height=150).splitlines()
    texts = [line for line in lines if line.strip()]
    if len(texts) > MOST_TEXTS:
        show_note(f"{label} has {len(texts)} texts; the first {MOST_TEXTS} are read.")
    return texts[:MOST_TEXTS]


def _show(
    page: LivePage, sets: Contrast, order: str, ceiling: float, n_texts: tuple[int, int]
) -> None:
    score = sets.difference if order == "difference" else np.nan_to_num(sets.effect)
    ranked = np.argsort(-np.abs(score), kind="stable")
    rare = page.numbers.density[sets.latent] <= ceiling
    ranked = ranked[rare[ranked] & (score[ranked] != 0)]
    if not len(ranked):
        show_note("No feature differs between the sets below this density ceiling.")
        return
    in_a, in_b = ranked[score[ranked] > 0], ranked[score[ranked] < 0]
    shown = [*in_a[:MOST_BARS], *in_b[:MOST_BARS][::-1]]
    show_figure(
        signed_bars(
            name="contrast",
            title="Features that tell the sets apart",
            axis="mean activation, A − B" if order == "difference" else "effect size (Cohen's d)",
            caption=f"{DEFINITION} Set A: {sets.n_tokens[0]} tokens of {n_texts[0]} texts; set B: "
            f"{sets.n_tokens[1]} of {n_texts[1]}.",
            rows=[
                (f"{feature} {short_label(page.label(feature))}", float(score[index]))
                for index in shown
                for feature in [int(sets.latent[index])]
            ],
            positive="features are stronger in A",
            negative="features are stronger in B",
        ),
        "contrast_figure",
    )
    for title, chosen in (("Stronger in A", in_a), ("Stronger in B", in_b)):
        st.subheader(title)
        if not len(chosen):
            show_note("No feature.")
            continue
        columns = {
            "A − B": sets.difference[chosen].tolist(),
            "effect size": [e if np.isfinite(e) else None for e in sets.effect[chosen].tolist()],
            "mean in A": sets.mean_a[chosen].tolist(),
            "mean in B": sets.mean_b[chosen].tolist(),
            "texts of A": [f"{count} of {n_texts[0]}" for count in sets.texts_a[chosen]],
            "texts of B": [f"{count} of {n_texts[1]}" for count in sets.texts_b[chosen]],
        }
        key = title.lower().replace(" ", "_")
        show_feature_table(page, title, sets.latent[chosen], columns, key)
