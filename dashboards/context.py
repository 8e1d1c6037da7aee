"""What the pages share: the index of runs, the dictionary that the address names, open stores."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import NoReturn
from urllib.parse import urlencode

import streamlit as st

from saelab.errors import ArtifactError
from saelab.features.label_content import Label, one_each
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore, is_stale
from saelab.features.schema import LABEL_FILE

from .command import DEFAULT_ROOTS, ROOTS_VARIABLE
from .run_index import DictionaryEntry, RunEntry, RunIndex, once_per_state, scan
from .widgets.page_parts import FEATURE_PAGE, plain, show_problem

SECONDS_BETWEEN_SCANS = 5
SECONDS_FOR_A_CHECK = 0.3
"""How long a page waits for a feature store to be checked against its hash, which takes ten
seconds for 65,536 features; then it is shown, and taken back should the check fail."""


def run_index() -> RunIndex:
    """What lies below the folders given, scanned again every few seconds."""
    given = os.environ.get(ROOTS_VARIABLE)
    return _scan(DEFAULT_ROOTS if given is None else tuple(map(Path, json.loads(given))))


@st.cache_resource(ttl=SECONDS_BETWEEN_SCANS, show_spinner=False, max_entries=4)
def _scan(roots: tuple[Path, ...]) -> RunIndex:
    return scan(roots)


def default_run(index: RunIndex) -> RunEntry | None:
    """The newest run with a feature store, else with dictionaries, else any."""
    return max(
        index.runs,
        key=lambda run: (any(d.store_path for d in run.dictionaries), bool(run.dictionaries)),
        default=None,
    )


def default_dictionary(run: RunEntry | None) -> DictionaryEntry | None:
    """The first dictionary of a run with a feature store, else any."""
    entries = () if run is None else run.dictionaries
    return max(entries, key=lambda entry: entry.store_path is not None, default=None)


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


def require_store(entry: DictionaryEntry) -> FeatureStore:
    """The open feature store of a dictionary; where there is none, the page says so and ends."""
    if entry.store_path is None:
        where = shlex.quote(str(entry.folder)) if entry.folder else "the dictionary's folder"
        _stop(
            f"{entry.name} has no feature store yet: build one with `saelab features {where}`, "
            "then reload this page."
        )
    try:
        store = open_store(entry.store_path)
        check = _checked(entry.store_path)[1]
    except (ArtifactError, OSError) as error:
        _stop(str(error))
    if not check.done():
        _draw_again_after(check)
    return store


@st.fragment(run_every=1)
def _draw_again_after(check: Future[None]) -> None:
    if check.done():
        st.rerun()


@once_per_state(32)
def _checked(path: Path) -> tuple[FeatureStore, Future[None]]:
    """A store, and what becomes of checking all of it."""
    store, check = FeatureStore(path), Future()
    Thread(target=_check, args=(path, check), name=f"check {path}", daemon=True).start()
    wait([check], timeout=SECONDS_FOR_A_CHECK)
    return store, check


def _check(path: Path, check: Future[None]) -> None:
    try:
        with FeatureStore(path) as store:  # its own: pages wait for none that is being read
            store.verify()
        check.set_result(None)
    except BaseException as error:
        check.set_exception(error)


def open_store(path: Path) -> FeatureStore:
    """A feature store, opened and checked once for each state of its file, shared by all sessions.

    Raises:
        ArtifactError: missing, foreign, from a newer saelab, or found damaged by now.
    """
    store, check = _checked(path)
    if check.done():
        check.result()
    return store


def open_labels(store: FeatureStore) -> LabelBook:
    """The labels and notes beside a store, which stay when the store is built again.

    Raises:
        ArtifactError: the file of that name is not saelab's.
    """
    path = store.path.with_name(LABEL_FILE)
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link: labels are read and written only beside the store")
    return LabelBook(path, store.manifest["made_from"]["dictionary_hash"], store.n_features)


def all_labels(store: FeatureStore) -> Sequence[Label]:
    """Every label and explanation; none where the file is damaged, and the page says so."""
    return _labels(store)[0]


def label_texts(store: FeatureStore) -> Mapping[int, str]:
    """The label of every feature that has one; see `one_each`."""
    return _labels(store)[1]


def _labels(store: FeatureStore) -> tuple[Sequence[Label], Mapping[int, str]]:
    try:
        book = open_labels(store)
        made_from = store.manifest["made_from"]["dictionary_hash"]
        if book.path.exists():
            return _read_labels(book.path, made_from, store.n_features)
    except ArtifactError as error:
        show_problem(str(error))
    return (), {}


@once_per_state(32)
def _read_labels(
    path: Path, dictionary: str, n_features: int
) -> tuple[Sequence[Label], Mapping[int, str]]:
    """Thousands of explanations take a while."""
    labels = tuple(LabelBook(path, dictionary, n_features).all())
    return labels, {feature: label.text for feature, label in one_each(labels).items()}


def staleness_of(store: FeatureStore, entry: DictionaryEntry) -> str | None:
    """A sentence if a store was built from another dictionary than the one on disk."""
    if entry.folder is None or (entry.content_hash is None and entry.problem is None):
        return None
    return is_stale(store, entry.folder)


def link_params(dictionary: DictionaryEntry | None = None, **more: str) -> dict[str, str]:
    """The parameters of an address within the app.

    Args:
        dictionary: the one the address names; None for the chosen one.
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


def feature_href(feature: int, dictionary: DictionaryEntry | None = None, **more: str) -> str:
    """Address of a feature's page, for links in HTML."""
    return "feature?" + urlencode(link_params(dictionary, f=str(feature), **more))


def go_to_feature(feature: int, entry: DictionaryEntry) -> None:
    """Send the browser to a feature's page.

    `st.switch_page` publishes the new parameters while the browser stands on the old page, which
    makes an entry in its history that Back lands on. Streamlit follows the browser instead, as it
    does on Back and Forward.
    """
    address = json.dumps(feature_href(feature, entry))
    st.html(
        f"<script>history.pushState({{}}, '', {address});"
        "dispatchEvent(new PopStateEvent('popstate'))</script>",
        unsafe_allow_javascript=True,
    )


def _stop(sentence: str) -> NoReturn:
    show_problem(sentence)
    st.stop()
