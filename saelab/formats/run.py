"""`run.json`: what a training run says of itself, its settings, its origin and its dictionaries.

Written by `saelab train`; read by everything that looks for the dictionaries of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saelab.errors import ArtifactError, ConfigError

from .manifest import new_manifest, read_manifest, require_fields, write_manifest

RUN_FILE = "run.json"
RUN_KIND = "training_run"
DICTIONARIES_FOLDER = "dictionaries"
DICTIONARY_FILE = "saelab.json"
"""In every dictionary's folder."""
NUMBER_OR_NONE = (int, float, type(None))
_COSTS = {"seconds_per_step": NUMBER_OR_NONE, "state_bytes": (int, type(None))}


@dataclass(frozen=True, kw_only=True)
class TrainedDictionary:
    """What a run says of one of its dictionaries."""

    folder: Path
    fvu: float | int | None
    """On the rows after the last ones trained on; None where not recorded."""
    l0: float | int | None
    """On the same rows."""
    seconds_per_step: float | None
    """Time of its training steps."""
    state_bytes: int | None
    """Memory held between steps."""


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """A run, as its `run.json` describes it."""

    folder: Path
    status: str
    """"complete", or "running" until it is."""
    settings_hash: str
    """Names the run in its checkpoints; empty where not recorded."""
    config: dict[str, Any]
    made_from: dict[str, Any]
    """Provenance of its activations."""
    created: str
    """UTC time of writing."""
    extensions: list[dict[str, Any]]
    """Each time it was made longer."""
    initialised_from: dict[str, Any]
    """The dictionary it began with; empty where it was drawn at random."""
    content: dict[str, Any]
    """All of the file."""

    @property
    def complete(self) -> bool:
        """Whether its dictionaries are written."""
        return self.status == "complete"

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / RUN_FILE

    def dictionaries(self) -> dict[str, TrainedDictionary]:
        """The dictionaries of a complete run by name.

        Raises:
            ArtifactError: they are not listed as a run lists them, or are outside the run.
        """
        require_fields(self.content, {"dictionaries": dict}, self.path)
        listed = self.content["dictionaries"]
        require_fields(listed, dict.fromkeys(listed, dict), self.path)
        return {name: self._dictionary(figures) for name, figures in listed.items()}

    def _dictionary(self, figures: dict[str, Any]) -> TrainedDictionary:
        path = self.path
        require_fields(figures, {"folder": str, "fvu": NUMBER_OR_NONE, "l0": NUMBER_OR_NONE}, path)
        folder = self.folder / figures["folder"]
        if not folder.resolve().is_relative_to(self.folder.resolve()):
            raise ArtifactError(
                f"{path} was damaged or edited: it names a dictionary outside the run, "
                f"{figures['folder']!r}"
            )
        costs = {name: figures.get(name) for name in _COSTS}
        require_fields(costs, _COSTS, path)
        for name, value in costs.items():
            if value is not None and not 0 <= value < math.inf:
                raise ArtifactError(f"{path} was damaged or edited: {name!r} is {value}")
        return TrainedDictionary(folder=folder, fvu=figures["fvu"], l0=figures["l0"], **costs)


def write_run(
    folder: Path,
    status: Literal["running", "complete"],
    *,
    seed: int,
    config: dict[str, Any],
    made_from: dict[str, Any],
    settings_hash: str,
    extensions: Sequence[dict[str, Any]] = (),
    initialised_from: dict[str, Any] | None = None,
    excluded: dict[str, int] | None = None,
    dictionaries: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write `run.json`; returns its content.

    Args:
        folder: the run's.
        status: "running" until the dictionaries are written.
        seed: of the order of the data.
        config: the settings, as plain values.
        made_from: provenance of the activations.
        settings_hash: names the run in its checkpoints.
        extensions: each time that the run was made longer: from which step, how long before and
            after, and by which schedule.
        initialised_from: the dictionary it began with; None: drawn at random.
        excluded: rows left out, by reason; of a complete run.
        dictionaries: figures of each by name, with its "folder" in the run; of a complete run.
    """
    content = new_manifest(RUN_KIND, seed=seed, config=config, made_from=made_from)
    content |= {"status": status, "settings_hash": settings_hash}
    if extensions:
        content["extensions"] = list(extensions)
    if initialised_from is not None:
        content["initialised_from"] = initialised_from
    if status == "complete":
        content |= {"excluded": excluded, "dictionaries": dictionaries}
    return write_manifest(folder / RUN_FILE, content)


def read_run(folder: Path) -> RunManifest:
    """Read and check the `run.json` of a folder.

    Raises:
        ArtifactError: missing, damaged, edited, or from a newer saelab.
    """
    path = folder / RUN_FILE
    content = read_manifest(path, RUN_KIND)
    types = {"status": str, "settings_hash": str, "config": dict, "made_from": dict, "created": str}
    types |= {"extensions": list, "initialised_from": dict}
    optional = {name: kind() for name, kind in types.items() if name != "status"}
    known = require_fields({**optional, **content}, types, path)
    return RunManifest(folder=folder, content=content, **{name: known[name] for name in types})


def dictionary_folders(paths: Sequence[Path]) -> list[Path]:
    """The dictionaries meant by some paths: of a run folder all, else the folder itself.

    Raises:
        ArtifactError: a run without dictionaries, or a path that is neither.
        ConfigError: no path, or a dictionary named twice.
    """
    if not paths:
        raise ConfigError("no run was given: name a run folder, or dictionary folders")
    folders: list[Path] = []
    for path in paths:
        if (path / DICTIONARY_FILE).is_file():
            folders.append(path)
            continue
        inside = sorted(
            file.parent for file in path.glob(f"{DICTIONARIES_FOLDER}/*/{DICTIONARY_FILE}")
        )
        if not inside and (path / RUN_FILE).is_file():
            raise ArtifactError(
                f"{path} is a run without dictionaries yet: let `saelab train` finish it first"
            )
        if not inside:
            if not path.exists():
                raise ArtifactError(f"{path} does not exist: give a run or a dictionary folder")
            raise ArtifactError(
                f"{path} is neither a run nor a dictionary folder: expected {RUN_FILE} with "
                f"dictionaries/, or {DICTIONARY_FILE}; `saelab info {path}` says what it is"
            )
        folders += inside
    doubled = [str(path) for path in folders if folders.count(path) > 1]
    if doubled:
        raise ConfigError(f"dictionaries named twice: {', '.join(dict.fromkeys(doubled))}")
    return folders
