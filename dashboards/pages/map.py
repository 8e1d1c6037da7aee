"""Map: the decoder directions of a dictionary in two dimensions."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from typing import Any

import numpy as np
import streamlit as st

from saelab.features.reader import FeatureStore

from .. import url_state
from ..context import feature_link, link_params, open_labels, require_dictionary, require_store
from ..widgets.feature_table import tokens_text
from ..widgets.figures import feature_map
from ..widgets.page_parts import (
    FEATURE_PAGE,
    run_page,
    show_figure,
    show_note,
)

COLOURS = ("density", "label")
MOST_TOKENS = 5


def render() -> None:
    """Draw the page."""
    entry = require_dictionary()
    store = require_store(entry)
    st.title("Map")
    table = store.table()
    placed = np.flatnonzero(np.isfinite(table["map_x"]) & np.isfinite(table["map_y"]))
    if not len(placed):
        show_note("This store has no map: build it again with `saelab features`.")
        return
    labels = {feature: label.text for feature, label in open_labels(store).latest().items()}
    colour, query = draw_controls()
    chosen = highlighted(store, labels, query)
    if query.strip():
        st.caption(f"{len(chosen):,} features match the search; the others are left out.")
        placed = np.array([feature for feature in placed.tolist() if feature in chosen], dtype=int)
    if not len(placed):
        show_note("No feature matches: take out a word.")
        return
    ids = placed.tolist()
    figure = feature_map(
        ids,
        table["map_x"][placed].tolist(),
        table["map_y"][placed].tolist(),
        np.nan_to_num(table["density"][placed]).tolist(),
        [hover_text(feature, table, labels) for feature in ids],
        labelled=[feature in labels for feature in ids] if colour == "label" else None,
        method=map_method(store.manifest),
    )
    selected = [int(feature) for feature in show_figure(figure, "map", on_select="points")]
    if len(selected) == 1:
        st.switch_page(FEATURE_PAGE, query_params=link_params(entry, f=str(selected[0])))
    for feature in selected[:20]:
        feature_link(feature, f"Feature {feature}: {about(feature, table, labels)}")


def draw_controls() -> tuple[str, str]:
    """What colours the points, and which are shown."""
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    with left:
        url_state.bind("map_colour", "colour", "density", url_state.one_of(*COLOURS))
        colour = st.segmented_control("Colour by", COLOURS, key="map_colour", required=True)
        url_state.publish("colour", colour, "density")
    with right:
        url_state.bind("map_query", "q", "")
        query = st.text_input(
            "Show only",
            key="map_query",
            placeholder="a word in top tokens, promoted tokens, labels",
        )
        url_state.publish("q", query, "")
    return colour or "density", query


def highlighted(store: FeatureStore, labels: dict[int, str], query: str) -> set[int]:
    """The features that a search finds."""
    if not query.strip():
        return set()
    wanted = query.strip().casefold()
    hits = {hit.feature for hit in store.search(query, limit=5000)}
    return hits | {feature for feature, text in labels.items() if wanted in text.casefold()}


def hover_text(feature: int, table: dict[str, Any], labels: dict[int, str]) -> str:
    """What a point says: plotly reads a few HTML tags, so everything is escaped."""
    from html import escape

    density = table["density"][feature]
    return (
        f"<b>feature {feature}</b><br>{escape(about(feature, table, labels))}"
        f"<br>density {density:.2e}"
    )


def about(feature: int, table: dict[str, Any], labels: dict[int, str]) -> str:
    """Label or top tokens of a feature."""
    return labels.get(feature) or tokens_text(table["top_tokens"][feature], MOST_TOKENS) or "silent"


def map_method(manifest: dict[str, Any]) -> str:
    """How the coordinates were found, in words."""
    described = manifest.get("map") or {}
    method = str(described.get("method", "unit decoder row in two dimensions"))
    explained = described.get("explained")
    if isinstance(explained, (list, tuple)) and len(explained) == 2:
        shares = " and ".join(f"{100 * float(share):.1f} %" for share in explained)
        return f"{plain_method(method)} ({shares} of the variance)"
    return plain_method(method)


def plain_method(method: str) -> str:
    """The method as part of a sentence."""
    return f"decoder row by {method}" if len(method) < 12 else method


if __name__ == "__main__":
    run_page(render)
