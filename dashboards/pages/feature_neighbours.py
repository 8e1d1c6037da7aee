"""The features near a feature, as links."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore
from saelab.features.records import FeatureRecord, Neighbour

from ..feature_table import tokens_text
from ..page_parts import feature_link, plain

MOST_NEIGHBOURS = 8
MOST_TOKENS = 4


def show_neighbours(record: FeatureRecord, store: FeatureStore, book: LabelBook) -> None:
    """Four lists side by side, each with its definition."""
    st.header("Neighbours")
    labels = {feature: label.text for feature, label in book.latest().items()}
    lists = (
        ("Decoder", "cosine of decoder rows: what it writes", record.decoder_neighbours),
        ("Encoder", "cosine of encoder columns: what it reads", record.encoder_neighbours),
        (
            "Active together",
            "Jaccard index: tokens with both over tokens with either",
            record.coactive_jaccard,
        ),
        (
            "Correlated",
            "Pearson correlation of activations over all tokens counted",
            record.coactive_pearson,
        ),
    )
    for column, (title, definition, neighbours) in zip(st.columns(4), lists, strict=True):
        with column:
            st.markdown(f"##### {title}")
            st.caption(plain(definition))
            show_links(neighbours, store, labels)


def show_links(
    neighbours: Sequence[Neighbour], store: FeatureStore, labels: dict[int, str]
) -> None:
    """Links to the nearest features, with their value and what they are about."""
    if not neighbours:
        st.caption("none")
    tokens = store.table()["top_tokens"]
    for neighbour in neighbours[:MOST_NEIGHBOURS]:
        about = labels.get(neighbour.feature) or tokens_text(tokens[neighbour.feature], MOST_TOKENS)
        both = "" if neighbour.n_both is None else f" on {neighbour.n_both:,} tokens"
        feature_link(
            neighbour.feature, f"{neighbour.feature} · {neighbour.value:.2f}{both} · {about}"
        )
