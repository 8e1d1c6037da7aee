"""A dictionary with its language model, loaded once for all who ask: pages and the server alike.

Torch and the model are imported when they are first needed, and nothing is downloaded. Nothing here
knows of Streamlit.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from saelab.errors import ArtifactError, ModelError
from saelab.features.reader import FeatureStore

from .run_index import DictionaryEntry

if TYPE_CHECKING:
    from saelab.live.session import LiveSession, SharedModel

PLANTED = "planted:"
MAX_TOKENS = 256
"""Tokens of a text that are read; the rest is cut off, and whoever asked is told."""
_LOADING = Lock()


def open_session(entry: DictionaryEntry, store: FeatureStore) -> LiveSession:
    """The session of a dictionary, loaded on first use.

    Raises:
        ArtifactError: the dictionary is missing, damaged or does not fit its model or its store.
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
    with _LOADING:  # two who ask at once load it once
        session = _session(entry.folder, str(entry.content_hash))
    if session.saved.dictionary.d_sae != store.n_features:
        raise ArtifactError(
            f"the feature store of {entry.name} describes {store.n_features:,} features, but the "
            f"dictionary has {session.saved.dictionary.d_sae:,}: build the store again with "
            f"`saelab features {entry.folder} --overwrite`"
        )
    return session


@lru_cache(maxsize=8)
def _session(folder: Path, content_hash: str) -> LiveSession:  # noqa: ARG001 - the cache's key
    from saelab.dictionary import load_dictionary
    from saelab.live.session import LiveSession

    saved = load_dictionary(folder)
    origin = saved.made_from
    dtype, model_kwargs = origin.get("model_dtype", "bfloat16"), origin.get("model_kwargs", ())
    shared = _shared_model(saved.model_name, dtype, tuple(model_kwargs))
    saved.dictionary.to(shared.model.device)
    return LiveSession(shared, saved)


@lru_cache(maxsize=2)
def _shared_model(name: str, dtype: str, model_kwargs: tuple[str, ...]) -> SharedModel:
    from saelab.live.lock import FairLock
    from saelab.live.session import SharedModel
    from saelab.model.language_model import list_models, load_language_model

    local = {model["name"] for model in list_models()}
    if name not in local and not Path(name).expanduser().exists():
        raise ModelError(
            f"the language model {name!r} is not on this machine, and the dashboard downloads "
            "nothing: run `saelab eval` or `saelab cache` with it once, then reload this page"
        )
    return SharedModel(
        load_language_model(name, dtype=dtype, model_kwargs=model_kwargs), FairLock()
    )
