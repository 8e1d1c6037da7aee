"""The folder of a quickstart: what is finished in it, with which settings, and who may use it.

`quickstart.json` is written before anything else is, so a folder without one is somebody else's and
is never resumed in or deleted from.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import TEMPORARY_SUFFIX
from saelab.formats.manifest import new_manifest, read_manifest, require_fields, write_manifest

STATE_KIND = "quickstart_state"
STATE_FILE = "quickstart.json"
REPORT_FILE = "report.json"
CACHE_FOLDER = "cache"
TRAIN_FOLDER = "train"
STAGES = ("cache", "train", "eval", "features")


class QuickstartFolder:
    """A quickstart's folder, opened by `prepare`.

    `state` has the settings, the finished stages, the seconds spent in each stage (interrupted
    attempts included), and the peak memory in GB of the hungriest attempt.
    """

    def __init__(self, out: Path, state: dict[str, Any]):
        self.out = out
        self.state = state

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage so far."""
        return self.state["seconds"]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a stage, and take it for finished when nothing was raised."""
        start = time.monotonic()
        try:
            yield
            self.state["finished"].append(name)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            self.state["peak_memory_gb"] = max(self.state["peak_memory_gb"], peak_memory_gb())
            self.save()

    def save(self) -> None:
        """Write the state as it stands."""
        write_manifest(self.out / STATE_FILE, self.state)


def prepare(
    out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool
) -> QuickstartFolder:
    """Open the folder, new or again.

    Raises:
        ConfigError: it is in use, is not a quickstart's, or was started with other settings.
        ArtifactError: its state is damaged.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; quickstart makes a folder: give another --out")
    fresh = QuickstartFolder(out, _new_state(settings))
    entries = {path.name for path in out.iterdir()} if out.exists() else set()
    entries = {name for name in entries if not name.endswith(TEMPORARY_SUFFIX)}
    # A first stage that failed at once leaves only the state: nothing that could be lost.
    if entries <= {STATE_FILE}:
        fresh.save()
        return fresh
    if not (resume or overwrite):
        raise ConfigError(
            f"{out} already exists: give --resume to go on with it, --overwrite to start over, "
            "or another --out"
        )
    if STATE_FILE not in entries:
        raise ConfigError(
            f"{out} was not made by quickstart (it has no {STATE_FILE}): give another --out"
        )
    if resume:
        return QuickstartFolder(out, _state_to_resume(out, settings))
    foreign = sorted(entries - {STATE_FILE, REPORT_FILE, CACHE_FOLDER, TRAIN_FOLDER})
    if foreign:
        raise ConfigError(
            f"{out} also holds {foreign[0]!r}, which quickstart did not make: it is left alone; "
            "give another --out, or move that away"
        )
    # The state first: a kill in between must not leave stages that are named finished and are not.
    fresh.save()
    (out / REPORT_FILE).unlink(missing_ok=True)
    for name in (TRAIN_FOLDER, CACHE_FOLDER):
        if (out / name).exists():
            shutil.rmtree(out / name)
    return fresh


def peak_memory_gb() -> float:
    """The most resident memory this process has held, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def _new_state(settings: dict[str, Any]) -> dict[str, Any]:
    manifest = new_manifest(STATE_KIND, seed=0, config=settings, made_from={})
    return manifest | {"finished": [], "seconds": {}, "peak_memory_gb": 0.0}


def _state_to_resume(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    path = out / STATE_FILE
    state = read_manifest(path, STATE_KIND)
    require_fields(
        state, {"config": dict, "finished": list, "seconds": dict, "peak_memory_gb": float}, path
    )
    require_fields(state["seconds"], dict.fromkeys(state["finished"], float), path)
    if not set(state["seconds"]) <= set(STAGES):
        raise ArtifactError(f"{path} names stages that quickstart does not have: it was edited")
    differing = [
        f"{name} was {state['config'].get(name)}, is {value}"
        for name, value in settings.items()
        if state["config"].get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"{out} was started with other settings ({'; '.join(differing)}): resume with the "
            "same, or start over with --overwrite"
        )
    return state
