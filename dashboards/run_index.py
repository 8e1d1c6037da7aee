"""Which runs, dictionaries, feature stores and evaluation results lie below the folders given.

The scan is the only source of paths: an address names an entry of the index, and no text of an
address is ever joined to a path. Symbolic links are not followed, so nothing outside the folders
given on the command line can be reached.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from itertools import chain, count
from pathlib import Path
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

from saelab.errors import ArtifactError, SaelabError
from saelab.features.neuronpedia import identifier, source_id
from saelab.features.schema import STORE_FILE
from saelab.formats.evaluation_result import COMPARISON_FILE
from saelab.formats.files import read_json
from saelab.formats.manifest import read_manifest
from saelab.formats.run import RUN_FILE, RUN_KIND

Value = TypeVar("Value")
Rest = ParamSpec("Rest")

DEEPEST = 8
"""Folders below the one given that are looked into."""
LARGEST_SHOWN = 1 << 53
"""Numbers from which on none counts anything that there is."""
SKIPPED_FOLDERS = {"checkpoint", "controls", "__pycache__", "node_modules"}


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
    """method, architecture, d_in, d_sae, k, l0, fvu, dead and seed, as far as they are known."""
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
    """What addresses call it: the folder given, and the path below it."""
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
    """Everything that lies below the folders given."""

    roots: tuple[Path, ...]
    runs: tuple[RunEntry, ...]
    problems: tuple[str, ...] = ()
    """Folders that could not be read, in words."""
    comparisons: dict[str, Path] = field(default_factory=dict)
    """Files of comparisons of methods, by the folder given and the path below it."""

    def run(self, run_id: str | None) -> RunEntry | None:
        """The run of this id; any other text finds nothing."""
        return next((run for run in self.runs if run.id == run_id), None)

    @property
    def dictionaries(self) -> tuple[DictionaryEntry, ...]:
        """The dictionaries of all runs."""
        return tuple(entry for run in self.runs for entry in run.dictionaries)


def neuronpedia_addresses(index: RunIndex) -> dict[tuple[str, str], DictionaryEntry]:
    """Dictionaries by model and source, as Neuronpedia's addresses call them.

    Of several with one name the oldest run's has it, and the others are numbered.
    """
    addresses: dict[tuple[str, str], DictionaryEntry] = {}
    for run in reversed(index.runs):
        for entry in run.dictionaries:
            name, model = identifier(entry.name), identifier(entry.model or "unknown")
            names = chain([name], (f"{name}-{number}" for number in count(2)))
            keys = ((model, source_id(entry.hook_point or "", each)) for each in names)
            addresses[next(key for key in keys if key not in addresses)] = entry
    return addresses


def scan(roots: Sequence[Path]) -> RunIndex:
    """Look through folders for everything the dashboard can show.

    Args:
        roots: folders, or single feature stores. What is missing or unreadable becomes a sentence.
    """
    runs: list[RunEntry] = []
    problems: list[str] = []
    prefixes: list[str] = []
    comparisons: dict[str, Path] = {}
    for root in roots:
        root = Path(root).resolve()
        name = root.name or "root"
        numbered = (f"{name}~{number}" for number in count(2))
        prefix = next(p for p in chain([name], numbered) if p not in prefixes)
        prefixes.append(prefix)
        if root.is_file():
            store = DictionaryEntry(run_id=prefix, name=root.stem, store_path=root)
            runs.append(RunEntry(id=prefix, folder=root.parent, dictionaries=(store,)))
        elif not root.is_dir():
            problems.append(
                f"{root} does not exist: give folders with runs, such as the --out of "
                "`saelab train`"
            )
        else:
            runs += _runs_below(root, prefix, problems, comparisons)
    runs.sort(key=lambda run: run.created, reverse=True)
    return RunIndex(
        roots=tuple(roots), runs=tuple(runs), problems=tuple(problems), comparisons=comparisons
    )


def _runs_below(
    root: Path, prefix: str, problems: list[str], comparisons: dict[str, Path]
) -> list[RunEntry]:
    """Every run in a folder, each with the dictionaries that lie nearest to it."""
    run_folders: list[Path] = []
    dictionary_folders: list[Path] = []
    stores: list[Path] = []
    for folder, names in _walk(root, problems):
        if COMPARISON_FILE in names:
            comparisons[_run_id(folder, root, prefix)] = folder / COMPARISON_FILE
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
                if name.endswith(".sqlite")
                and name != STORE_FILE
                and not name.endswith("labels.sqlite")
            ]
    entries: dict[Path, list[DictionaryEntry]] = {folder: [] for folder in run_folders}
    for path in [*dictionary_folders, *stores]:
        folder = path.parent if path in stores else path
        # The run folder that is nearest above, else the folder given.
        above = [run for run in run_folders if run == folder or run in folder.parents]
        owner = max(above, key=lambda run: len(run.parts), default=root)
        entry = (_bare_store if path in stores else _dictionary)(
            path, owner, _run_id(owner, root, prefix)
        )
        entries.setdefault(owner, []).append(entry)
    return [
        _run(folder, _run_id(folder, root, prefix), tuple(sorted(members, key=lambda e: e.name)))
        for folder, members in entries.items()
    ]


def _walk(root: Path, problems: list[str]) -> Iterator[tuple[Path, set[str]]]:
    """Folders with the names of the plain files in them; links are neither followed nor listed."""

    def note(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    for path, folders, files in os.walk(root, onerror=note, followlinks=False):
        folder = Path(path)
        depth = len(folder.relative_to(root).parts)
        folders[:] = sorted(
            name
            for name in folders
            if depth < DEEPEST and name not in SKIPPED_FOLDERS and not name.startswith(".")
        )
        yield folder, {name for name in files if not (folder / name).is_symlink()}


def _run_id(folder: Path, root: Path, prefix: str) -> str:
    return "/".join([prefix, *folder.relative_to(root).parts])


def _run(folder: Path, run_id: str, dictionaries: tuple[DictionaryEntry, ...]) -> RunEntry:
    facts: dict[str, Any] = {}
    if (folder / RUN_FILE).is_file():
        try:
            manifest = run_manifest(folder / RUN_FILE)
            facts = {key: str(manifest[key]) for key in ("status", "created") if key in manifest}
        except (SaelabError, OSError) as error:
            facts = {"problem": str(error)}
    return RunEntry(
        id=run_id,
        folder=folder,
        metrics_path=plain_file(folder / "metrics.jsonl"),
        dictionaries=dictionaries,
        **facts,
    )


def plain_file(path: Path) -> Path | None:
    """The path of a file; None where there is none, or a link that may lead elsewhere."""
    return path if path.is_file() and not path.is_symlink() else None


def _dictionary(folder: Path, owner: Path, run_id: str) -> DictionaryEntry:
    below = folder.relative_to(owner)
    if below.parts[:1] == ("dictionaries",):
        below = below.relative_to("dictionaries")
    evals = folder / "evals"
    results = [] if evals.is_symlink() else sorted(evals.glob("*.json"))
    facts: dict[str, Any]
    try:
        facts = _facts(folder)
    except (SaelabError, OSError) as error:
        facts = {"problem": str(error)}
    return DictionaryEntry(
        run_id=run_id,
        name=folder.name if below == Path() else below.as_posix(),
        folder=folder,
        store_path=plain_file(folder / STORE_FILE),
        evaluations={path.stem: path for path in results if plain_file(path)},
        **facts,
    )


def _bare_store(store: Path, owner: Path, run_id: str) -> DictionaryEntry:
    name = store.stem
    if store.name == STORE_FILE:
        below = store.parent.relative_to(owner).as_posix()
        name = store.parent.name if below == "." else below
    return DictionaryEntry(run_id=run_id, name=name, store_path=store)


def once_per_state(
    most: int,
) -> Callable[[Callable[Concatenate[Path, Rest], Value]], Callable[Concatenate[Path, Rest], Value]]:
    """Decorate a reader: each file is read once for each state of it; `most` files are kept.

    The decorated reader raises ArtifactError where there is no such file.
    """

    def decorate(
        reader: Callable[Concatenate[Path, Rest], Value],
    ) -> Callable[Concatenate[Path, Rest], Value]:
        lock = RLock()
        read_with: Callable[..., Value] = reader

        @lru_cache(maxsize=most)
        def read(path: Path, state: tuple[int, int], *rest: Any) -> Value:  # noqa: ARG001 - a key
            return read_with(path, *rest)

        @wraps(reader)
        def current(path: Path, *rest: Rest.args, **_: Rest.kwargs) -> Value:
            try:
                state = path.stat()
            except OSError as error:
                raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
            with lock:
                return read(path, (state.st_mtime_ns, state.st_size), *rest)

        return current

    return decorate


@once_per_state(512)
def run_manifest(path: Path) -> dict[str, Any]:
    """What a run says of itself now."""
    return read_manifest(path, RUN_KIND)


@once_per_state(4096)
def _dictionary_manifest(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path, "dictionary")
    # The mean activation is the bulk of a manifest, and no page shows it.
    part_of(manifest, "made_from").pop("mean", None)
    return manifest


_shape = once_per_state(4096)(read_json)


def part_of(content: dict[str, Any], key: str) -> dict[str, Any]:
    """An object within an object; empty where it is anything else."""
    part = content.get(key)
    return part if isinstance(part, dict) else {}


def _facts(folder: Path) -> dict[str, Any]:
    """What is known of a dictionary without reading its weights."""
    shape = _shape(folder / "cfg.json")
    if not isinstance(shape, dict):
        raise ArtifactError(f"{folder / 'cfg.json'} holds no object: it was damaged or edited")
    path = folder / "saelab.json"
    manifest = _dictionary_manifest(path) if path.exists() else {}
    config, made_from = part_of(manifest, "config"), part_of(manifest, "made_from")
    metadata, imported = part_of(shape, "metadata"), part_of(made_from, "imported")
    measured = part_of(imported, "measured")
    numbers = {
        **{name: shape.get(name) for name in ("d_in", "d_sae", "k")},
        "l0": config.get("measured_l0", measured.get("l0")),
        "fvu": config.get("fvu_on_training_rows", measured.get("fvu")),
        "dead": config.get("dead_fraction", measured.get("dead_fraction")),
    }
    return {
        "facts": {
            "method": _text(config.get("method", imported.get("format"))),
            "architecture": _text(shape.get("architecture")),
            **{name: _number(value) for name, value in numbers.items()},
            # Only what was trained here says which weights its seed drew.
            "seed": _number(manifest.get("seed")) if "method" in config else None,
        },
        "model": _text(made_from.get("model") or metadata.get("model_name")),
        "hook_point": _text(made_from.get("hook_point") or metadata.get("hook_name")),
        "content_hash": _text(manifest.get("content_hash")),
    }


def _text(value: Any) -> str | None:
    """What a page can print, of a value that may be anything."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def _number(value: Any) -> int | float | None:
    """What a table can hold, of a value that may be anything."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return value if known and abs(value) < LARGEST_SHOWN else None
