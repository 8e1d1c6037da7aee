"""Which runs, dictionaries, feature stores and evaluation results lie below the folders given.

The scan is the only source of paths: an address names an entry of the index, and no text of an
address is ever joined to a path. Symbolic links are not followed, so nothing outside the folders
given on the command line can be reached.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError, SaelabError
from saelab.features.schema import STORE_FILE
from saelab.formats.files import read_json
from saelab.formats.manifest import read_manifest
from saelab.formats.run import RUN_FILE, RUN_KIND

DEEPEST = 8
"""Folders below the one given that are looked into."""
SKIPPED_FOLDERS = {"checkpoint", "__pycache__", "node_modules"}


@dataclass(frozen=True, kw_only=True)
class DictionaryEntry:
    """A saved dictionary, or a feature store that lies alone."""

    run_id: str
    """The run it belongs to."""
    name: str
    """Unique within the run."""
    folder: Path | None = None
    """Where it lies; None for a feature store without its dictionary."""
    problem: str | None = None
    """What is wrong with its manifest, as a sentence."""
    facts: dict[str, Any] = field(default_factory=dict)
    """method, architecture, d_in, d_sae, k, l0, fvu and dead, as far as they are known."""
    model: str | None = None
    hook_point: str | None = None
    content_hash: str | None = None
    store_path: Path | None = None
    """Its feature store, if one was built."""
    evaluations: dict[str, Path] = field(default_factory=dict)
    """Result file by suite."""


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """A training run, or a folder with dictionaries of unknown origin."""

    id: str
    """What addresses call it: the folder given, and the way from there."""
    folder: Path
    status: str = "unknown"
    created: str = ""
    problem: str | None = None
    """What is wrong with run.json, as a sentence."""
    metrics_path: Path | None = None
    """The metrics of its training, if there are any."""
    dictionaries: tuple[DictionaryEntry, ...] = ()

    def dictionary(self, name: str | None) -> DictionaryEntry | None:
        """The dictionary of this name."""
        return next((entry for entry in self.dictionaries if entry.name == name), None)


@dataclass(frozen=True, kw_only=True)
class RunIndex:
    """Everything found below the folders given."""

    roots: tuple[Path, ...]
    runs: tuple[RunEntry, ...]
    problems: tuple[str, ...] = ()
    """Folders that could not be read, in words."""

    def run(self, run_id: str | None) -> RunEntry | None:
        """The run of this id; any other text finds nothing."""
        return next((run for run in self.runs if run.id == run_id), None)

    @property
    def dictionaries(self) -> tuple[DictionaryEntry, ...]:
        """The dictionaries of all runs."""
        return tuple(entry for run in self.runs for entry in run.dictionaries)


def scan(roots: Sequence[Path]) -> RunIndex:
    """Look through folders for everything the dashboard can show.

    Args:
        roots: folders, or single feature stores. What is missing or unreadable becomes a sentence.
    """
    runs: list[RunEntry] = []
    problems: list[str] = []
    taken: set[str] = set()
    for root in roots:
        root = Path(root).resolve()
        prefix = _unused(root.name or "root", taken)
        if root.is_file():
            store = DictionaryEntry(run_id=prefix, name=root.stem, store_path=root)
            runs.append(RunEntry(id=prefix, folder=root.parent, dictionaries=(store,)))
        elif not root.is_dir():
            problems.append(
                f"{root} does not exist: give folders with runs, such as the --out of "
                "`saelab train`"
            )
        else:
            runs += _runs_below(root, prefix, problems)
    runs.sort(key=lambda run: run.created, reverse=True)
    return RunIndex(roots=tuple(roots), runs=tuple(runs), problems=tuple(problems))


def _unused(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}~{number}"
    taken.add(candidate)
    return candidate


def _runs_below(root: Path, prefix: str, problems: list[str]) -> list[RunEntry]:
    """Every run in a folder, each with the dictionaries that lie nearest to it."""
    run_folders: list[Path] = []
    dictionary_folders: list[Path] = []
    stores: list[Path] = []
    for folder, names in walk(root, problems):
        if RUN_FILE in names:
            run_folders.append(folder)
        if {"saelab.json", "cfg.json"} & names:
            dictionary_folders.append(folder)
        elif STORE_FILE in names:
            stores.append(folder / STORE_FILE)
        if folder == root:
            stores += [
                folder / name
                for name in names
                if name.endswith(".sqlite") and name != STORE_FILE and not _is_labels(name)
            ]
    entries: dict[Path, list[DictionaryEntry]] = {folder: [] for folder in run_folders}
    for folder in dictionary_folders:
        owner = _nearest(folder, run_folders, root)
        entries.setdefault(owner, []).append(_dictionary(folder, owner, _id(owner, root, prefix)))
    for store in stores:
        owner = _nearest(store.parent, run_folders, root)
        entries.setdefault(owner, []).append(_bare_store(store, owner, _id(owner, root, prefix)))
    return [
        _run(folder, _id(folder, root, prefix), tuple(sorted(found, key=lambda e: e.name)))
        for folder, found in entries.items()
    ]


def _is_labels(name: str) -> bool:
    return name.endswith("labels.sqlite")


def walk(root: Path, problems: list[str]) -> Iterator[tuple[Path, set[str]]]:
    """Folders with the names of the plain files in them; links are neither followed nor listed."""

    def note(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    for place, folders, files in os.walk(root, onerror=note, followlinks=False):
        folder = Path(place)
        depth = len(folder.relative_to(root).parts)
        folders[:] = sorted(
            name
            for name in folders
            if depth < DEEPEST and name not in SKIPPED_FOLDERS and not name.startswith(".")
        )
        yield folder, {name for name in files if not (folder / name).is_symlink()}


def _nearest(folder: Path, run_folders: Sequence[Path], root: Path) -> Path:
    """The run folder that is nearest above, else the folder given."""
    above = [run for run in run_folders if run == folder or run in folder.parents]
    return max(above, key=lambda run: len(run.parts), default=root)


def _id(folder: Path, root: Path, prefix: str) -> str:
    way = folder.relative_to(root).as_posix()
    return prefix if way == "." else f"{prefix}/{way}"


def _run(folder: Path, run_id: str, dictionaries: tuple[DictionaryEntry, ...]) -> RunEntry:
    metrics = folder / "metrics.jsonl"
    status, created, problem = "unknown", "", None
    manifest_path = folder / RUN_FILE
    if manifest_path.is_file():
        try:
            manifest = _manifest(manifest_path, RUN_KIND)
            status = str(manifest.get("status", "unknown"))
            created = str(manifest.get("created", ""))
        except SaelabError as error:
            problem = str(error)
    return RunEntry(
        id=run_id,
        folder=folder,
        status=status,
        created=created,
        problem=problem,
        metrics_path=metrics if metrics.is_file() and not metrics.is_symlink() else None,
        dictionaries=dictionaries,
    )


def _dictionary_name(folder: Path, owner: Path) -> str:
    way = folder.relative_to(owner)
    if way.parts[:1] == ("dictionaries",):
        way = way.relative_to("dictionaries")
    return folder.name if way == Path() else way.as_posix()


def _dictionary(folder: Path, owner: Path, run_id: str) -> DictionaryEntry:
    name = _dictionary_name(folder, owner)
    store = folder / STORE_FILE
    store_path = store if store.is_file() and not store.is_symlink() else None
    evaluations = {path.stem: path for path in _json_files(folder / "evals")}
    try:
        facts = _facts(folder)
    except SaelabError as error:
        return DictionaryEntry(
            run_id=run_id,
            name=name,
            folder=folder,
            problem=str(error),
            store_path=store_path,
            evaluations=evaluations,
        )
    return DictionaryEntry(
        run_id=run_id,
        name=name,
        folder=folder,
        store_path=store_path,
        evaluations=evaluations,
        **facts,
    )


def _bare_store(store: Path, owner: Path, run_id: str) -> DictionaryEntry:
    name = store.stem if store.name != STORE_FILE else store.parent.name
    way = store.parent.relative_to(owner).as_posix()
    if store.name == STORE_FILE and way != ".":
        name = way
    return DictionaryEntry(run_id=run_id, name=name, store_path=store)


def _json_files(folder: Path) -> list[Path]:
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.glob("*.json") if not path.is_symlink())


def _manifest(path: Path, kind: str) -> dict[str, Any]:
    """A manifest, parsed and checked once for each state of its file."""
    return _read_once(path, kind, *_state(path))


def _state(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=4096)
def _read_once(path: Path, kind: str | None, modified: int, size: int) -> Any:  # noqa: ARG001 - part of the key
    content = read_json(path) if kind is None else read_manifest(path, kind)
    if isinstance(content, dict) and isinstance(content.get("made_from"), dict):
        # The mean activation is the bulk of a manifest, and no page shows it.
        content["made_from"].pop("mean", None)
    return content


def _facts(folder: Path) -> dict[str, Any]:
    """What is known of a dictionary without reading its weights."""
    shape_path = folder / "cfg.json"
    shape = _read_once(shape_path, None, *_state(shape_path))
    if not isinstance(shape, dict):
        raise ArtifactError(f"{shape_path} holds no object: it was damaged or edited")
    metadata = shape.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    config: dict[str, Any] = {}
    made_from: dict[str, Any] = {}
    content_hash = None
    if (folder / "saelab.json").exists():
        manifest = _manifest(folder / "saelab.json", "dictionary")
        config = manifest["config"] if isinstance(manifest.get("config"), dict) else {}
        made_from = manifest["made_from"] if isinstance(manifest.get("made_from"), dict) else {}
        content_hash = manifest.get("content_hash")
    return {
        "facts": {
            "method": config.get("method"),
            "architecture": shape.get("architecture"),
            "d_in": shape.get("d_in"),
            "d_sae": shape.get("d_sae"),
            "k": shape.get("k"),
            "l0": config.get("measured_l0"),
            "fvu": config.get("fvu_on_training_rows"),
            "dead": config.get("dead_fraction"),
        },
        "model": made_from.get("model") or metadata.get("model_name"),
        "hook_point": made_from.get("hook_point") or metadata.get("hook_name"),
        "content_hash": content_hash,
    }
