"""The live model behind the Prompt and Steer pages: loaded once, shared by all, one pass at a time.

Torch and the model are imported only when a page needs them. Nothing is downloaded: a model that is
not on this machine is refused in words.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from saelab.errors import ArtifactError, ModelError
from saelab.features.reader import FeatureStore
from saelab.features.unpacking import split_tokens
from saelab.live.ranking import FeatureNumbers
from saelab.live.reading import Reading

from .context import link_params, open_labels, staleness_of
from .run_index import DictionaryEntry
from .widgets.html_tables import feature_href
from .widgets.page_parts import show_problem

if TYPE_CHECKING:
    from saelab.live.attribution import Attribution
    from saelab.live.session import LiveSession, SharedModel
    from saelab.model.gradients import Quantity

PLANTED = "planted:"
MAX_TOKENS = 256
"""Tokens of a text that are read; the rest is cut off, and the page says so."""
MAX_CHARACTERS = 4000
"""Characters that a text box takes."""


@dataclass(frozen=True, eq=False)
class LivePage:
    """What a page with a live model works with."""

    entry: DictionaryEntry
    store: FeatureStore
    session: LiveSession
    numbers: FeatureNumbers
    labels: dict[int, str]

    def href(self, feature: int) -> str:
        """Address of a feature's page."""
        return feature_href(link_params(self.entry, f=str(feature)))

    def label(self, feature: int) -> str:
        """The newest label of a feature, or the tokens at which its strongest examples peak."""
        known = self.labels.get(feature)
        if known:
            return known
        return " ".join(split_tokens(self.store.table()["top_tokens"][feature])[:4]).strip()

    @property
    def key(self) -> tuple[str, str]:
        """Names the dictionary, for caches."""
        return str(self.entry.folder), str(self.entry.content_hash)

    def read(self, text: str) -> Reading:
        """The active features of a text; read once, whatever the sliders say."""
        with self.spinner("Reading"):
            return _read(self.key, text, self.session)

    def attribute(self, text: str, target: int, quantity: Quantity) -> Attribution:
        """Attributions to a next token."""
        with self.spinner("Taking gradients"):
            return _attribute(self.key, text, target, quantity, self.session)

    def next_tokens(self, text: str) -> list[tuple[int, str, float]]:
        """The twenty likeliest next tokens."""
        with self.spinner("Asking for the next token"):
            return _next_tokens(self.key, text, self.session)

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
    if entry.folder is None:
        raise ArtifactError(
            f"{entry.name} is a feature store without its dictionary, so no text can be run "
            "through it: put the store into the dictionary's folder"
        )
    if entry.problem is not None:
        raise ArtifactError(entry.problem)
    if str(entry.model).startswith(PLANTED):
        raise ArtifactError(
            f"{entry.name} was trained on planted features: there is no language model that could "
            "read a text; its recovery is on the page Evals"
        )
    with st.spinner("Loading the language model and the dictionary (the first time: ~20 s) …"):
        session = _session(entry.folder, str(entry.content_hash))
    if session.saved.dictionary.d_sae != store.n_features:
        raise ArtifactError(
            f"the feature store of {entry.name} describes {store.n_features:,} features, but the "
            f"dictionary has {session.saved.dictionary.d_sae:,}: build the store again with "
            f"`saelab features {entry.folder} --overwrite`"
        )
    stale = staleness_of(store, entry)
    for warning in [*session.warnings, *([stale] if stale else [])]:
        show_problem(warning)
    table = store.table()
    numbers = FeatureNumbers(np.nan_to_num(table["density"]), np.nan_to_num(table["max_act"]))
    labels = {feature: label.text for feature, label in open_labels(store).latest().items()}
    return LivePage(entry, store, session, numbers, labels)


@st.cache_resource(max_entries=8, show_spinner=False)
def _session(folder: Path, content_hash: str) -> LiveSession:  # noqa: ARG001 - the cache's key
    from saelab.dictionary import load_dictionary
    from saelab.live.session import LiveSession

    saved = load_dictionary(folder)
    shared = _shared_model(saved.model_name, saved.made_from.get("model_dtype", "bfloat16"))
    saved.dictionary.to(shared.model.device)
    return LiveSession(shared, saved)


@st.cache_resource(max_entries=2, show_spinner=False)
def _shared_model(name: str, dtype: str) -> SharedModel:
    from saelab.live.lock import FairLock
    from saelab.live.session import SharedModel
    from saelab.model.language_model import list_models, load_language_model

    local = {model["name"] for model in list_models()}
    if name not in local and not Path(name).expanduser().exists():
        raise ModelError(
            f"the language model {name!r} is not on this machine, and the dashboard downloads "
            "nothing: run `saelab eval` or `saelab cache` with it once, then reload this page"
        )
    return SharedModel(load_language_model(name, dtype=dtype), FairLock())


@st.cache_resource(max_entries=256, show_spinner=False)
def _read(key: tuple[str, str], text: str, _session: Any) -> Any:  # noqa: ARG001
    return _session.read(text, MAX_TOKENS)


@st.cache_resource(max_entries=64, show_spinner=False)
def _attribute(
    key: tuple[str, str],  # noqa: ARG001
    text: str,
    target: int,
    quantity: Any,
    _session: Any,
) -> Any:
    return _session.attribute(text, target, quantity, MAX_TOKENS)


@st.cache_resource(max_entries=64, show_spinner=False)
def _next_tokens(key: tuple[str, str], text: str, _session: Any) -> Any:  # noqa: ARG001
    return _session.next_tokens(text, 20, MAX_TOKENS)
