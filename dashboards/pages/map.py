"""Map: the features of a dictionary in two dimensions, near ones with similar decoder rows."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from collections.abc import Callable
from functools import lru_cache
from html import escape
from typing import Any

import numpy as np
import streamlit as st

from saelab.features.query import HELP
from saelab.features.reader import FeatureStore

from .. import url_state
from ..context import (
    feature_href,
    go_to_feature,
    label_texts,
    require_dictionary,
    require_store,
)
from ..run_index import DictionaryEntry
from ..widgets.feature_html import percent
from ..widgets.feature_table import about, map_regions
from ..widgets.figures import crowded, feature_map
from ..widgets.html_tables import link_list
from ..widgets.list_picker import add_to_list
from ..widgets.page_parts import csv_text, plain, run_page, show_figure, show_note

MOST_LISTED = 40
"""Selected features that the page lists; the file has all."""


def render() -> None:
    """Draw the page."""
    entry = require_dictionary()
    store = require_store(entry)
    st.title("Map")
    table, labels = store.table(), label_texts(store)
    shown = np.isfinite(table["map_x"]) & np.isfinite(table["map_y"])
    if not shown.any():
        show_note("This store has no map: build it again with `saelab features`.")
        return
    colour, query = _draw_controls()
    lit = ("have a label", np.isin(table["id"], list(labels))) if colour == "label" else None
    if query.strip():
        hits = np.isin(table["id"], store.search(query, labels).features) & shown
        if not hits.any():
            show_note("No feature matches: take out a word.")
            return
        st.caption(f"{hits.sum():,} features match the search.")
        lit = ("match the search", hits)
    part = {name: table[name][shown] for name in ("id", "map_x", "map_y", "density")}
    ids = part["id"].tolist()

    def described(feature: int) -> str:
        return about(table, labels, feature) or "silent"

    figure = feature_map(
        part,
        # Plotly reads a few HTML tags, so everything is escaped.
        [
            f"<b>feature {feature}</b><br>{escape(described(feature))}"
            f"<br>density {percent(float(table['density'][feature]))}"
            for feature in ids
        ],
        lit=lit and (lit[0], lit[1][shown]),
        method=map_method(store.manifest.get("map") or {}),
        regions=_regions(store),
    )
    hidden = ",".join(f".annotation[data-index='{index}']" for index in crowded(_regions(store)))
    if hidden:  # on a phone, words would be written over one another
        st.html(f"<style>@media(max-width:640px){{:is({hidden}){{display:none}}}}</style>")
    selected = [int(feature) for feature in show_figure(figure, "map", selectable=True)]
    if len(selected) == 1:
        go_to_feature(selected[0], entry)
    elif selected:
        _show_selected(entry, store, selected, described)


def _show_selected(
    entry: DictionaryEntry,
    store: FeatureStore,
    selected: list[int],
    described: Callable[[int], str],
) -> None:
    """The features inside the lasso or box, as links, for a list, and as a file."""
    st.header("Selected features")
    shown = selected[:MOST_LISTED]
    st.caption(
        f"{len(selected):,} features" + (f", the first {len(shown)}:" if shown != selected else ":")
    )
    st.html(link_list([(feature_href(f, entry), f"Feature {f}", described(f)) for f in shown]))
    add_to_list(entry.name, store, selected, "map")
    st.download_button(
        "Download CSV",
        csv_text({"feature": selected, "about": [described(f) for f in selected]}),
        file_name="selected_features.csv",
        mime="text/csv",
        on_click="ignore",
    )


@lru_cache(maxsize=8)
def _regions(store: FeatureStore) -> list[tuple[str, float, float]]:
    table = store.table()
    shown = np.isfinite(table["map_x"]) & np.isfinite(table["map_y"])
    return map_regions({name: table[name][shown] for name in ("map_x", "map_y", "top_tokens")})


def _draw_controls() -> tuple[str, str]:
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    colour = url_state.choice(
        left.segmented_control, "Colour by", ("density", "label"), param="colour", required=True
    )
    query = url_state.widget(
        right.text_input,
        "Light up",
        param="q",
        default="",
        placeholder='war -"civil war" token:/^ [A-Z]/',
        help=plain(HELP),
    )
    return colour, query


def map_method(described: dict[str, Any]) -> str:
    """How the coordinates were computed and what that kept, as sentences."""
    method = f"Placed by {described.get('method', 'an unknown method')}"
    if (kept := described.get("kept")) is not None:
        near = described["nearest"]
        return (
            f"{method}; {100 * kept:.1f} % of a feature's {near} nearest by cosine are among its "
            f"{near} nearest here (by chance {100 * described['chance']:.1f} %). Trust "
            "neighbourhoods, not distances: they have no unit."
        )
    explained = described.get("explained")
    if isinstance(explained, list | tuple) and len(explained) == 2:
        shares = " and ".join(f"{100 * float(share):.1f} %" for share in explained)
        method += f" ({shares} of the variance)"
    return (
        f"{method}, as stores were made before: near points need not be similar. `saelab features "
        "--overwrite` makes one that keeps neighbours."
    )


if __name__ == "__main__":
    run_page(render)
