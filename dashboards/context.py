"""What the pages share: the index of runs, the dictionary that the address names, open stores."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlencode

import streamlit as st

from saelab.errors import ArtifactError
from saelab.features.label_content import Label
from saelab.features.reader import FeatureStore

from .command import DEFAULT_ROOTS, ROOTS_VARIABLE
from .run_index import DictionaryEntry, RunEntry, RunIndex, scan
from .stores import check_of, labels_of, open_store, texts_of
from .widgets.page_parts import FEATURE_PAGE, plain, show_problem

SECONDS_BETWEEN_SCANS = 5


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
        check = check_of(entry.store_path)
    except (ArtifactError, OSError) as error:
        _stop(str(error))
    if not check.done():
        _draw_again_after(check)
    return store


@st.fragment(run_every=1)
def _draw_again_after(check: Future[None]) -> None:
    if check.done():
        st.rerun()


def all_labels(store: FeatureStore) -> Sequence[Label]:
    """Every label and explanation; none where the file is damaged, and the page says so."""
    try:
        return labels_of(store)
    except ArtifactError as error:
        show_problem(str(error))
        return ()


def label_texts(store: FeatureStore) -> Mapping[int, str]:
    """The label of every feature that has one; none where the file is damaged, as above."""
    try:
        return texts_of(store)
    except ArtifactError as error:
        show_problem(str(error))
        return {}


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
