"""The live model behind the Prompt and Steer pages, and the parts that these pages share.

The model is loaded once, shared by all, and runs one pass at a time. Torch and the model are
imported only when a page needs them. Nothing is downloaded: a model that is not on this machine is
refused in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from jaxtyping import Int

from saelab.features.reader import FeatureStore
from saelab.features.token_text import Vocabulary
from saelab.live.reading import FeatureNumbers, Reading

from . import url_state
from .context import feature_href, label_texts
from .live_session import MAX_TOKENS, open_session
from .run_index import DictionaryEntry
from .stores import staleness_of
from .widgets.feature_html import percent
from .widgets.feature_table import DENSITIES, about
from .widgets.html_tables import linked_table
from .widgets.page_parts import download_table, plain, show_note, show_problem
from .widgets.token_html import visible_text

if TYPE_CHECKING:
    from saelab.live.attribution import Attribution
    from saelab.live.session import LiveSession
    from saelab.model.gradients import Quantity

MAX_CHARACTERS = 4000
"""Characters that a text box takes."""
MOST_ROWS = 40
"""Features that a table on a page lists; its file has all."""
MOST_TOKENS = 4


@dataclass(frozen=True, eq=False)
class LivePage:
    """What a page with a live model works with."""

    entry: DictionaryEntry
    store: FeatureStore
    session: LiveSession
    numbers: FeatureNumbers
    labels: Mapping[int, str]

    def href(self, feature: int) -> str:
        """Address of a feature's page."""
        return feature_href(feature, self.entry)

    def label(self, feature: int) -> str:
        """The newest label of a feature, or the tokens at which its strongest examples peak."""
        return about(self.store.table(), self.labels, feature, MOST_TOKENS)

    @property
    def key(self) -> tuple[str, str]:
        """Names the dictionary, for caches."""
        return str(self.entry.folder), str(self.entry.content_hash)

    def read(self, text: str) -> Reading:
        """The active features of a text; read once, whatever the sliders say."""
        return self._ask("Reading", "read", text)

    def attribute(self, text: str, target: int, quantity: Quantity) -> Attribution:
        """Attributions to a next token."""
        return self._ask("Taking gradients", "attribute", text, target, quantity)

    def next_tokens(self, text: str) -> list[tuple[int, str, float]]:
        """The twenty likeliest next tokens."""
        return self._ask("Asking for the next token", "next_tokens", text, 20)

    def _ask(self, doing: str, method: str, *arguments: Any) -> Any:
        with self.spinner(doing):
            return _answer(self.key, method, arguments, self.session)

    def spinner(self, doing: str) -> AbstractContextManager[None]:
        """A spinner that says whether others are before us."""
        waiting = self.session.waiting
        before = f" ({waiting} before you)" if waiting else ""
        return st.spinner(f"{doing}{before} …")


def open_live_page(entry: DictionaryEntry, store: FeatureStore) -> LivePage:
    """Load what a page needs, behind a spinner the first time, and say what does not fit.

    Raises:
        ArtifactError: the dictionary is missing, damaged or does not fit its model.
        ModelError: its language model is not on this machine.
    """
    with st.spinner("Loading the language model and the dictionary (the first time: ~20 s) …"):
        session = open_session(entry, store)
    stale = staleness_of(store, entry)
    for warning in [*session.warnings, *([stale] if stale else [])]:
        show_problem(warning)
    table = store.table()
    numbers = FeatureNumbers(np.nan_to_num(table["density"]), np.nan_to_num(table["max_act"]))
    return LivePage(entry, store, session, numbers, label_texts(store))


@st.cache_resource(max_entries=256, show_spinner=False)
def _answer(
    key: tuple[str, str],  # noqa: ARG001 - part of the cache's key
    method: str,
    arguments: tuple[Any, ...],
    _session: LiveSession,
) -> Any:
    return getattr(_session, method)(*arguments, MAX_TOKENS)


def text_box(label: str, key: str, param: str, default: str, *, height: int = 110) -> str:
    """A text area whose content is in the address."""
    url_state.bind(key, param, default)
    st.session_state[key] = st.session_state[key][:MAX_CHARACTERS]
    text = st.text_area(label, key=key, max_chars=MAX_CHARACTERS, height=height)
    url_state.publish(param, text, default)
    return text


def density_ceiling() -> float:
    """The slider of the largest density shown."""
    return url_state.choice(
        st.select_slider,
        "Density ceiling",
        {ceiling: percent(ceiling) for ceiling in DENSITIES[1:]},
        param="dens",
        default=1.0,
        help="Features active on a larger share of the store's tokens are hidden (log scale).",
    )


def say_what_was_cut(reading: Reading) -> None:
    """Say that a text was too long."""
    if reading.n_cut:
        show_note(
            f"The text is long: its first {len(reading.ids)} tokens are read, {reading.n_cut:,} "
            "are left out."
        )


def pieced(reading: Reading, vocabulary: Vocabulary) -> Reading:
    """A reading in which a character that takes several tokens is one piece.

    A position is the index of a piece; it counts if some token of the piece does. A feature is
    listed once for each piece, with the largest of its tokens' values.
    """
    pieces = vocabulary.pieces(reading.ids)
    starts = np.array(pieces.starts)
    piece = np.searchsorted(starts, reading.position, side="right") - 1
    # Of the entries of a feature in one piece the largest comes first and is kept.
    order = np.lexsort((-reading.value, reading.latent, piece))
    pairs = np.stack([piece[order], reading.latent[order]])
    first = np.ones(len(order), dtype=bool)
    first[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    kept = order[first]
    return replace(
        reading,
        ids=[reading.ids[low] for low in starts[:-1]],
        tokens=list(pieces.texts),
        counted=np.logical_or.reduceat(reading.counted, starts[:-1]),
        position=piece[kept],
        latent=reading.latent[kept],
        value=reading.value[kept],
    )


def show_feature_table(
    page: LivePage,
    caption: str,
    latent: Int[np.ndarray, " features"],
    columns: dict[str, list[Any]],
    key: str,
    *,
    name: str | None = None,
) -> None:
    """Features with links and numbers; all of them, and a file, on request.

    Args:
        columns: by title, a number or text for each feature.
    """
    labels = [visible_text(page.label(feature)) for feature in latent.tolist()]
    columns = {"feature": latent.tolist(), "label or top tokens": labels, **columns}
    shown = {title: values[:MOST_ROWS] for title, values in columns.items()}
    cut = f"the first {MOST_ROWS} of " if len(latent) > MOST_ROWS else ""
    title = f"{caption}: {cut}{len(latent):,} features"
    st.caption(plain(title))
    st.html(linked_table(title, shown, [page.href(feature) for feature in shown["feature"]]))
    with st.expander("All of them, and a file"):
        download_table(name or key, columns, key)
