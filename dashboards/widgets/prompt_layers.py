"""The Prompt page's fourth mode: one text through every dictionary of the model at once."""

from __future__ import annotations

import re

import numpy as np
import streamlit as st

from saelab.errors import SaelabError
from saelab.formats.chart import Axis, Chart, Series
from saelab.live.reading import Reading, feature_use, ranked, relative
from saelab.report.page import Html

from .. import live, url_state
from ..context import open_store, run_index
from ..run_index import DictionaryEntry
from .html_tables import chip, page_table
from .page_parts import plain, show_figure, show_note, show_problem
from .token_html import short, short_label, visible_text

MOST_DICTIONARIES, MOST_CHIPS, CHIP_LABEL = 12, 4, 24
EXAMPLE_TEXT = "The President of the United States addressed Congress in December."
MEASURES = {
    "share": "strongest feature, share of its maximum",
    "count": "active features",
}


def draw_layers(page: live.LivePage) -> None:
    """A text, and a row of the heat map for each dictionary."""
    text = live.text_box("Text", "layers_text", "text", EXAMPLE_TEXT)
    measure = url_state.choice(st.radio, "Show", MEASURES, param="show", horizontal=True)
    if not text.strip():
        show_note("Type a text to see it through every dictionary.")
        return
    entries = _dictionaries_of(str(page.entry.model))
    if len(entries) > MOST_DICTIONARIES:
        show_note(f"{len(entries)} dictionaries of the model are there; {MOST_DICTIONARIES} read.")
    names, cells, rows, tokens = [], [], [], []
    for entry in entries[:MOST_DICTIONARIES]:
        try:
            assert entry.store_path is not None
            each = live.open_live_page(entry, open_store(entry.store_path))
            whole = live.pieced(each.read(text), each.store.vocabulary)
        except (SaelabError, OSError) as error:
            show_problem(f"{entry.name}: {error}")
            continue
        tokens = [f"{index} {visible_text(token)}" for index, token in enumerate(whole.tokens)]
        names.append(_name(entry))
        cells.append(_row(whole, each, measure))
        rows.append([names[-1], _strongest(whole, each)])
    if not names:
        return
    chart = Chart(
        name="layers",
        title="Layer by layer",
        caption="A row for each dictionary of this model with a feature store, by layer; a column "
        "for each token. Empty where the token does not count for a dictionary.",
        x=Axis(title="token"),
        y=Axis(title="dictionary"),
        series=(Series(name=MEASURES[measure], x=[*tokens], y=[*names], z=cells, mark="heat map"),),
        colour=MEASURES[measure],
        height=170 + 36 * len(names),
        wide=True,
    )
    show_figure(chart, "layers")
    caption = f"The {MOST_CHIPS} features of each with the largest share of their maximum"
    st.html(page_table(plain(caption), ["dictionary", "features"], rows))


def _dictionaries_of(model: str) -> list[DictionaryEntry]:
    """Those of a model that have a feature store, by layer."""
    known = [e for e in run_index().dictionaries if e.model == model and e.folder and e.store_path]
    return sorted(known, key=lambda entry: (_layer(entry), entry.run_id, entry.name))


def _layer(entry: DictionaryEntry) -> int:
    number = re.search(r"\d+", entry.hook_point or "")
    return int(number[0]) if number else -1


def _name(entry: DictionaryEntry) -> str:
    return f"{entry.hook_point or '?'} · {entry.run_id}/{entry.name}"


def _row(whole: Reading, page: live.LivePage, measure: str) -> list[float | int | None]:
    """A number for each token; None where it does not count."""
    values: list[float | int | None] = []
    for index, counted in enumerate(whole.counted.tolist()):
        part = whole.at(index)
        shares = relative(whole.value[part], page.numbers.maximum[whole.latent[part]])
        strongest = float(shares[np.isfinite(shares)].max(initial=0.0))
        number = len(shares) if measure == "count" else strongest
        values.append(number if counted else None)
    return values


def _strongest(whole: Reading, page: live.LivePage) -> Html:
    use = feature_use(whole)
    shown = ranked(use.latent, use.peak, page.numbers, "relative")[:MOST_CHIPS].tolist()
    return Html(
        "".join(
            chip(
                feature := int(use.latent[index]),
                page.href(feature),
                short_label(page.label(feature), CHIP_LABEL),
                f"{short(float(use.peak[index]))} at {visible_text(whole.tokens[where])}",
                f"Feature {feature}: {page.label(feature)}",
            )
            for index in shown
            for where in [int(use.peak_position[index])]
        )
    )
