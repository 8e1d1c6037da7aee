"""Open feature stores and what is said of their features, shared by pages and the server.

Nothing here knows of Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from threading import Thread

from saelab.errors import ArtifactError
from saelab.features.label_content import Label, one_each
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore, is_stale
from saelab.features.schema import LABEL_FILE

from .run_index import DictionaryEntry, RunIndex, once_per_state

SECONDS_FOR_A_CHECK = 0.3
"""How long a page waits for a feature store to be checked against its hash, which takes ten
seconds for 65,536 features; then it is shown, and taken back should the check fail."""


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


def check_of(path: Path) -> Future[None]:
    """What becomes of checking all of a store.

    Raises:
        ArtifactError: it is missing, foreign, or from a newer saelab.
    """
    return _checked(path)[1]


def open_labels(store: FeatureStore) -> LabelBook:
    """The labels and notes beside a store, which stay when the store is built again.

    Raises:
        ArtifactError: the file of that name is not saelab's.
    """
    path = store.path.with_name(LABEL_FILE)
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link: labels are read and written only beside the store")
    return LabelBook(path, store.manifest["made_from"]["dictionary_hash"], store.n_features)


def labels_of(store: FeatureStore) -> Sequence[Label]:
    """Every label and explanation beside a store.

    Raises:
        ArtifactError: the file is damaged.
    """
    return _labels(store)[0]


def texts_of(store: FeatureStore) -> Mapping[int, str]:
    """The label of every feature that has one; see `one_each`.

    Raises:
        ArtifactError: the file is damaged.
    """
    return _labels(store)[1]


def _labels(store: FeatureStore) -> tuple[Sequence[Label], Mapping[int, str]]:
    book = open_labels(store)
    made_from = store.manifest["made_from"]["dictionary_hash"]
    if not book.path.exists():
        return (), {}
    return _read_labels(book.path, made_from, store.n_features)


@once_per_state(32)
def _read_labels(
    path: Path, dictionary: str, n_features: int
) -> tuple[Sequence[Label], Mapping[int, str]]:
    """Thousands of explanations take a while."""
    labels = tuple(LabelBook(path, dictionary, n_features).all())
    return labels, {feature: label.text for feature, label in one_each(labels).items()}


def entries_by_hash(index: RunIndex) -> dict[str, DictionaryEntry]:
    """Dictionaries by content hash; of several copies, one with a feature store."""
    entries: dict[str, DictionaryEntry] = {}
    for entry in sorted(index.dictionaries, key=lambda entry: entry.store_path is None):
        content_hash = entry.content_hash
        if entry.folder is None and entry.store_path is not None:
            with suppress(ArtifactError):  # its own page says what is wrong with it
                made_from = open_store(entry.store_path).manifest["made_from"]
                content_hash = made_from["dictionary_hash"]
        entries.setdefault(str(content_hash), entry)
    return entries


def staleness_of(store: FeatureStore, entry: DictionaryEntry) -> str | None:
    """A sentence if a store was built from another dictionary than the one on disk."""
    if entry.folder is None or (entry.content_hash is None and entry.problem is None):
        return None
    return is_stale(store, entry.folder)
