"""The Prompt page's second part: which features tell two sets of texts apart."""

from __future__ import annotations

import numpy as np
import streamlit as st
from jaxtyping import Int

from saelab.live.contrast import DEFINITION, Contrast, contrast

from .. import url_state
from ..live import LivePage
from .html_tables import linked_table, short_label
from .live_figures import signed_bars
from .page_parts import download_table, format_number, plain, show_figure, show_note
from .prompt_reading import density_ceiling, text_box
from .token_html import visible_text

MOST_TEXTS = 40
MOST_BARS = 10
MOST_ROWS = 25
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
    with order_box:
        url_state.bind("contrast_order", "by", "difference", url_state.one_of(*ORDERS))
        order = st.radio(
            "Sort by",
            list(ORDERS),
            format_func=ORDERS.__getitem__,
            horizontal=True,
            key="contrast_order",
        )
        url_state.publish("by", order, "difference")
    with ceiling_box:
        ceiling = density_ceiling()
    if not a or not b:
        show_note("Give both sets at least one text.")
        return
    found = contrast(
        [page.read(text) for text in a], [page.read(text) for text in b], page.store.n_features
    )
    _show(page, found, order, ceiling, (len(a), len(b)))


def _texts(label: str, key: str, param: str, default: str) -> list[str]:
    lines = text_box(label, key, param, default, height=150).splitlines()
    texts = [line for line in lines if line.strip()]
    if len(texts) > MOST_TEXTS:
        show_note(f"{label} has {len(texts)} texts; the first {MOST_TEXTS} are read.")
    return texts[:MOST_TEXTS]


def _show(
    page: LivePage, found: Contrast, order: str, ceiling: float, n_texts: tuple[int, int]
) -> None:
    score = found.difference if order == "difference" else np.nan_to_num(found.effect)
    rare = page.numbers.density[found.latent] <= ceiling
    places = np.argsort(-np.abs(score), kind="stable")
    places = places[rare[places] & (score[places] != 0)]
    if not len(places):
        show_note("No feature differs between the sets below this density ceiling.")
        return
    ahead = places[score[places] > 0][:MOST_BARS]
    behind = places[score[places] < 0][:MOST_BARS]
    shown = [*ahead, *behind[::-1]]
    show_figure(
        signed_bars(
            name="contrast",
            title="Features that tell the sets apart",
            axis="mean activation, A − B" if order == "difference" else "effect size (Cohen's d)",
            caption=f"{DEFINITION} Set A: {found.n_tokens[0]} tokens of {n_texts[0]} texts; set B: "
            f"{found.n_tokens[1]} of {n_texts[1]}.",
            rows=[(_name(page, int(found.latent[p])), float(score[p])) for p in shown],
            positive="features are stronger in A",
            negative="features are stronger in B",
        ),
        "contrast_figure",
    )
    for title, chosen in (
        ("Stronger in A", places[score[places] > 0]),
        ("Stronger in B", places[score[places] < 0]),
    ):
        st.subheader(title)
        _table(page, found, chosen, n_texts, title)


def _name(page: LivePage, feature: int) -> str:
    return f"{feature} {short_label(page.label(feature))}"


def _table(
    page: LivePage,
    found: Contrast,
    chosen: Int[np.ndarray, " chosen"],
    n_texts: tuple[int, int],
    title: str,
) -> None:
    if not len(chosen):
        show_note("No feature.")
        return
    effect = [float(value) if np.isfinite(value) else None for value in found.effect[chosen]]
    columns: dict[str, list[object]] = {
        "feature": found.latent[chosen].tolist(),
        "A − B": found.difference[chosen].tolist(),
        "effect size": list(effect),
        "mean in A": found.mean_a[chosen].tolist(),
        "mean in B": found.mean_b[chosen].tolist(),
        "texts of A": [f"{count} of {n_texts[0]}" for count in found.texts_a[chosen]],
        "texts of B": [f"{count} of {n_texts[1]}" for count in found.texts_b[chosen]],
        "label or top tokens": [visible_text(page.label(int(f))) for f in found.latent[chosen]],
    }
    titles = list(columns)[1:]
    rows = [
        (
            int(feature),
            page.href(int(feature)),
            [format_number(columns[name][place]) for name in titles],
        )
        for place, feature in enumerate(found.latent[chosen][:MOST_ROWS])
    ]
    cut = f"the first {MOST_ROWS} of " if len(chosen) > MOST_ROWS else ""
    st.html(linked_table(f"{title}: {cut}{len(chosen):,} features", titles, rows))
    with st.expander("All of them, and a file"):
        download_table(title.lower().replace(" ", "_"), columns, f"contrast_{title[-1]}")
