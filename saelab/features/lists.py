"""Lists of features over dictionaries: one sealed JSON file each, which is also what is exchanged.

A feature is named by its dictionary's content hash, so a list holds wherever that dictionary lies.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError, ConfigError, shown
from saelab.formats.files import parse_json, read_json
from saelab.formats.lock import writer_lock
from saelab.formats.manifest import (
    SEAL,
    check_manifest,
    new_manifest,
    require_fields,
    write_manifest,
)

from .label_content import MAX_NAME_CHARACTERS, MAX_NOTE_CHARACTERS

KIND = "feature_list"
FOLDER, ENDING = "feature_lists", ".list.json"
MOST_FEATURES = 1000
"""Of one list: what a person collects, not a selection of a whole dictionary."""
MOST_BYTES = 20_000_000
LARGEST_INDEX = 10**9
_WRITING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class ListedFeature:
    """One feature of a list."""

    dictionary: str
    """Content hash of its dictionary."""
    name: str
    """What the dictionary was called when the feature was added."""
    feature: int
    """Its index."""
    note: str = ""
    """What somebody says of it here."""


@dataclass(frozen=True, kw_only=True)
class FeatureList:
    """Features in an order, with a name and notes."""

    name: str
    description: str = ""
    features: tuple[ListedFeature, ...] = ()
    id: str = ""
    """What addresses and its file are called; empty until it is saved."""
    sha256: str = ""
    """Of its content, as its file says and its reader checked."""

    def with_features(self, added: Iterable[ListedFeature]) -> FeatureList:
        """With features at its end, but for those that it holds."""
        held = {(item.dictionary, item.feature): item for item in self.features}
        new = {(item.dictionary, item.feature): item for item in added}
        return replace(self, features=tuple({**new, **held}[key] for key in {**held, **new}))

    def problems(self) -> list[str]:
        """What keeps it from being saved."""
        problems = []
        if not self.name.strip() or len(self.name) > MAX_NAME_CHARACTERS:
            problems.append(f"a list needs a name of 1 to {MAX_NAME_CHARACTERS} characters")
        if len(self.features) > MOST_FEATURES:
            problems.append(
                f"the list has {len(self.features):,} features: at most {MOST_FEATURES:,} are kept"
            )
        texts = (self.description, *(item.note for item in self.features))
        if (longest := max(map(len, texts))) > MAX_NOTE_CHARACTERS:
            problems.append(
                f"a text has {longest:,} characters: at most {MAX_NOTE_CHARACTERS:,} are kept"
            )
        odd = next((i for i in self.features if not 0 <= i.feature <= LARGEST_INDEX), None)
        if odd is not None:
            problems.append(f"a feature's index is {odd.feature}: expected 0 to {LARGEST_INDEX}")
        return problems

    def as_manifest(self) -> dict[str, Any]:
        """What its file holds."""
        names = {item.dictionary: item.name for item in self.features}
        return {
            **new_manifest(KIND, seed=None, config={}, made_from={"dictionaries": names}),
            "name": self.name,
            "description": self.description,
            "features": [asdict(item) for item in self.features],
        }


class ListShelf:
    """The lists of a folder; safe to share between threads and processes.

    Args:
        folder: where they lie; made by the first one.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def all(self) -> tuple[list[FeatureList], list[str]]:
        """The lists by name, and a sentence for each file that is none."""
        lists, problems = [], []
        for path in sorted(self.folder.glob(f"*{ENDING}")):
            try:
                lists.append(read_list(path))
            except (ArtifactError, OSError) as error:
                problems.append(str(error))
        return sorted(lists, key=lambda each: each.name.casefold()), problems

    def of(self, list_id: str) -> FeatureList:
        """The list of this id, which names a file only if one of that name is here.

        Raises:
            ConfigError: there is none.
            ArtifactError: its file was damaged.
        """
        return read_list(self._path_of(list_id))

    def exported(self, list_id: str) -> bytes:
        """A list's file as it stands, once it was checked; raises as `of` does."""
        self.of(list_id)
        return self._path_of(list_id).read_bytes()

    def _path_of(self, list_id: str) -> Path:
        for path in self.folder.glob(f"*{ENDING}"):
            if path.name == list_id + ENDING:
                return path
        raise ConfigError(f"there is no list {shown(list_id)}: it was removed, or lies elsewhere")

    def add(self, new: FeatureList) -> FeatureList:
        """Keep a new list, under a name that none here has.

        Raises:
            ConfigError: everything that is wrong with it.
        """
        return self._write(lambda: replace(new, id=secrets.token_hex(6)))

    def change(self, list_id: str, changed: Callable[[FeatureList], FeatureList]) -> FeatureList:
        """Put what a function makes of a list in its place; nobody else writes meanwhile.

        Raises:
            ConfigError: the list is gone, or what is wrong with the changed one.
        """
        return self._write(lambda: replace(changed(self.of(list_id)), id=list_id))

    def remove(self, list_id: str) -> None:
        """Remove a list."""
        with _WRITING, writer_lock(self.folder):
            self._path_of(list_id).unlink()

    def _write(self, make: Callable[[], FeatureList]) -> FeatureList:
        with _WRITING, writer_lock(self.folder):
            made = make()
            made = replace(made, name=made.name.strip(), description=made.description.strip())
            problems = made.problems()
            if any(made.name == each.name and made.id != each.id for each in self.all()[0]):
                problems.append(f"there is a list {shown(made.name)} already: give another name")
            if problems:
                raise ConfigError(problems)
            written = write_manifest(self.folder / f"{made.id}{ENDING}", made.as_manifest())
        return replace(made, sha256=written[SEAL])


def read_list(path: Path) -> FeatureList:
    """Read a list's file.

    Raises:
        ArtifactError: missing, damaged, or of another kind.
    """
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link: lists are read from the folder itself only")
    return _list_of(read_json(path), path, path.name.removesuffix(ENDING))


def list_from_bytes(content: bytes, name: str) -> FeatureList:
    """A list that was exported, to be added.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        ArtifactError: it is no list, or was damaged or edited.
    """
    if len(content) > MOST_BYTES:
        raise ArtifactError(f"{name} has {len(content):,} bytes: no list is that large")
    try:
        parsed = parse_json(content)
    except ValueError as error:
        raise ArtifactError(f"{name} is not valid JSON ({error})") from None
    return _list_of(parsed, Path(name), "")


def _list_of(parsed: Any, path: Path, list_id: str) -> FeatureList:
    content = check_manifest(parsed, path, KIND)
    needed = {"name": str, "description": str, "features": list, SEAL: str}
    require_fields(content, needed, path)
    types = {"dictionary": str, "name": str, "feature": int, "note": str}
    features = []
    for item in content["features"]:
        fields = require_fields(item if isinstance(item, dict) else {}, types, path)
        features.append(ListedFeature(**{key: fields[key] for key in types}))
    read = FeatureList(
        name=content["name"],
        description=content["description"],
        features=tuple(features),
        id=list_id,
        sha256=content[SEAL],
    )
    if problems := read.problems():
        raise ArtifactError(f"{path} was damaged or edited: {'; '.join(problems)}")
    return read


def shelf_of(roots: Sequence[Path]) -> ListShelf:
    """The lists of what a dashboard or server was given: in the first of its folders."""
    first = Path(roots[0])
    return ListShelf((first if first.is_dir() else first.parent) / FOLDER)
