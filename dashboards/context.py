"""What the pages share: the index of runs, the dictionary that the address names, open stores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NoReturn

import streamlit as st

from saelab.errors import ArtifactError
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore, is_stale
from saelab.features.schema import LABEL_FILE

from .command import DEFAULT_ROOTS, ROOTS_VARIABLE
from .run_index import DictionaryEntry, RunEntry, RunIndex, scan
from .widgets.page_parts import FEATURE_PAGE, plain, show_problem

SECONDS_BETWEEN_SCANS = 5


def roots_given() -> list[Path]:
    """The folders that `saelab dashboard` was given."""
    text = os.environ.get(ROOTS_VARIABLE)
    return list(DEFAULT_ROOTS) if text is None else [Path(path) for path in json.loads(text)]


def run_index() -> RunIndex:
    """What lies below the folders given, scanned again every few seconds."""
    return _scan(tuple(roots_given()))


@st.cache_resource(ttl=SECONDS_BETWEEN_SCANS, show_spinner=False, max_entries=4)
def _scan(roots: tuple[Path, ...]) -> RunIndex:
    return scan(roots)


def default_run(index: RunIndex) -> RunEntry | None:
    """The newest run with a feature store, else with dictionaries, else any."""
    with_store = [run for run in index.runs if any(d.store_path for d in run.dictionaries)]
    with_dictionaries = [run for run in index.runs if run.dictionaries]
    return next(iter([*with_store, *with_dictionaries, *index.runs]), None)


def default_dictionary(run: RunEntry | None) -> DictionaryEntry | None:
    """The first dictionary of a run with a feature store, else any."""
    if run is None:
        return None
    with_store = [entry for entry in run.dictionaries if entry.store_path]
    return next(iter([*with_store, *run.dictionaries]), None)


def chosen_run() -> RunEntry | None:
    """The run that the address names, else the default."""
    index = run_index()
    return index.run(st.query_params.get("run")) or default_run(index)


def chosen_dictionary() -> DictionaryEntry | None:
    """The dictionary that the address names, else the default of the run."""
    run = chosen_run()
    if run is None:
        return None
    return run.dictionary(st.query_params.get("sae")) or default_dictionary(run)


def address_problem() -> str | None:
    """A sentence if the address names a run or dictionary that is not there."""
    run_id, name = st.query_params.get("run"), st.query_params.get("sae")
    index = run_index()
    if run_id is not None and index.run(run_id) is None:
        return (
            f"The address names the run {run_id!r}, which is not below the folders given to "
            "`saelab dashboard`: it was moved or removed, or another folder is needed."
        )
    run = chosen_run()
    if name is not None and run is not None and run.dictionary(name) is None:
        return f"The run {run.id} has no dictionary {name!r}: it was moved or removed."
    return None


def require_dictionary() -> DictionaryEntry:
    """The chosen dictionary; where there is none, the page says so and ends."""
    entry = chosen_dictionary()
    if entry is None:
        _stop(
            "No dictionary lies below the folders given: train one with `saelab train`, or try "
            "`saelab quickstart`."
        )
    return entry


def require_store(entry: DictionaryEntry | None = None) -> FeatureStore:
    """The open feature store of a dictionary; where there is none, the page says so and ends.

    Args:
        entry: the dictionary; None for the chosen one.
    """
    entry = entry or require_dictionary()
    if entry.store_path is None:
        where = entry.folder or "the dictionary's folder"
        _stop(
            f"{entry.name} has no feature store yet: build one with `saelab features {where}`, "
            "then reload this page."
        )
    try:
        return open_store(entry.store_path)
    except (ArtifactError, OSError) as error:
        _stop(str(error))


def open_store(path: Path) -> FeatureStore:
    """A feature store, opened once for each state of its file and shared by all sessions.

    Raises:
        ArtifactError: the file is missing, damaged, foreign or from a newer saelab.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    return _open(path, state.st_mtime_ns, state.st_size)


@st.cache_resource(max_entries=32, show_spinner=False)
def _open(path: Path, modified: int, size: int) -> FeatureStore:  # noqa: ARG001 - the cache's key
    return FeatureStore(path)


def open_labels(store: FeatureStore) -> LabelBook:
    """The labels and notes beside a store, which stay when the store is built again.

    Raises:
        ArtifactError: the file of that name is not saelab's.
    """
    path = store.path.with_name(LABEL_FILE)
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link: labels are read and written only beside the store")
    return LabelBook(path, store.manifest["made_from"]["dictionary_hash"], store.n_features)


def staleness_of(store: FeatureStore, entry: DictionaryEntry) -> str | None:
    """A sentence if a store was built from another dictionary than the one on disk."""
    if entry.folder is None or (entry.content_hash is None and entry.problem is None):
        return None
    return is_stale(store, entry.folder)


def link_params(dictionary: DictionaryEntry | None = None, **more: str) -> dict[str, str]:
    """The parameters of an address within the app.

    Args:
        dictionary: the one the address names; None for the chosen one.
        more: further parameters.
    """
    entry = dictionary or chosen_dictionary()
    if entry is None:
        run = chosen_run()
        return more if run is None else {"run": run.id, **more}
    return {"run": entry.run_id, "sae": entry.name, **more}


def feature_link(
    feature: int, label: str | None = None, dictionary: DictionaryEntry | None = None
) -> None:
    """A real link to a feature's page."""
    text = f"Feature {feature}" if label is None else label
    st.page_link(
        FEATURE_PAGE, label=plain(text), query_params=link_params(dictionary, f=str(feature))
    )


def _stop(sentence: str) -> NoReturn:
    show_problem(sentence)
    st.stop()
