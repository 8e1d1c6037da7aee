"""Map: the decoder directions of a dictionary in two dimensions."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from html import escape
from typing import Any

import numpy as np
import streamlit as st

from .. import url_state
from ..context import (
    feature_link,
    go_to_feature,
    label_texts,
    require_dictionary,
    require_store,
)
from ..widgets.feature_table import about, search_features
from ..widgets.figures import feature_map
from ..widgets.page_parts import run_page, show_figure, show_note


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
    if query.strip():
        hits = search_features(store, labels, query)
        st.caption(f"{len(hits):,} features match the search; the others are left out.")
        shown &= np.isin(table["id"], list(hits))
    if not shown.any():
        show_note("No feature matches: take out a word.")
        return
    part = {name: table[name][shown] for name in ("id", "map_x", "map_y", "density")}
    ids = part["id"].tolist()

    def described(feature: int) -> str:
        return about(table, labels, feature) or "silent"

    figure = feature_map(
        part,
        # Plotly reads a few HTML tags, so everything is escaped.
        [
            f"<b>feature {feature}</b><br>{escape(described(feature))}"
            f"<br>density {table['density'][feature]:.2e}"
            for feature in ids
        ],
        labelled=[feature in labels for feature in ids] if colour == "label" else None,
        method=_map_method(store.manifest.get("map") or {}),
    )
    selected = [int(feature) for feature in show_figure(figure, "map", selectable=True)]
    if len(selected) == 1:
        go_to_feature(selected[0], entry)
    for feature in selected[:20]:
        feature_link(feature, f"Feature {feature}: {described(feature)}")


def _draw_controls() -> tuple[str, str]:
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    colour = url_state.choice(
        left.segmented_control, "Colour by", ("density", "label"), param="colour", required=True
    )
    query = url_state.widget(
        right.text_input,
        "Show only",
        param="q",
        default="",
        placeholder="a word in top tokens, promoted tokens, labels",
    )
    return colour, query


def _map_method(described: dict[str, Any]) -> str:
    """How the coordinates were computed, as part of a sentence."""
    method = str(described.get("method", "unit decoder row in two dimensions"))
    if len(method) < 12:
        method = f"decoder row by {method}"
    explained = described.get("explained")
    if isinstance(explained, list | tuple) and len(explained) == 2:
        shares = " and ".join(f"{100 * float(share):.1f} %" for share in explained)
        method += f" ({shares} of the variance)"
    return method


if __name__ == "__main__":
    run_page(render)
