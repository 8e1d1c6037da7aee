"""Checkpoints: one safetensors file with every state of a run, named by a small JSON beside it.

The JSON is replaced only after the new file is complete on disk, and the old file removed after
that, so a kill at any moment leaves a whole checkpoint behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.errors import ArtifactError
from saelab.formats.files import (
    hash_of,
    odd_content_is_damage,
    read_tensors,
    remove_leftovers,
    sha256_of,
    write_tensors,
)
from saelab.formats.kinds import KINDS
from saelab.formats.manifest import is_sealed, read_manifest, write_manifest

KIND = "checkpoint"
POINTER_FILE = "checkpoint.json"

StreamState = dict[str, Tensor | int | str]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps."""

    step: int
    """Steps taken."""
    settings_hash: str
    """Hash of the run's settings: a checkpoint only fits the settings it was made with."""
    stream: StreamState
    """Where the activation stream is."""
    learners: dict[str, dict[str, Tensor]]
    """State of each dictionary by name."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and, once it is safe, remove the one before."""
    tensors = {"random_state": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"random_state/cuda-{index}"] = state
    plain: dict[str, int | str] = {}
    for name, value in checkpoint.stream.items():
        if isinstance(value, Tensor):
            tensors[f"stream/{name}"] = value
        else:
            plain[name] = value
    for learner, state in checkpoint.learners.items():
        tensors |= {f"learner/{learner}/{name}": tensor for name, tensor in state.items()}
    file = folder / f"checkpoint-{checkpoint.step:08d}.safetensors"
    write_tensors(file, tensors)
    pointer = {
        "kind": KIND,
        "schema_version": KINDS[KIND].schema_version,
        "file": file.name,
        "sha256": sha256_of(file),
        "step": checkpoint.step,
        "settings_hash": checkpoint.settings_hash,
        "stream": plain,
    }
    write_manifest(folder / POINTER_FILE, pointer)
    for older in folder.glob("checkpoint-*.safetensors"):
        if older != file:
            older.unlink()


def saved_step(folder: Path) -> int:
    """Steps that the newest checkpoint of a run was taken after; 0 where there is none."""
    pointer_file = folder / POINTER_FILE
    return read_manifest(pointer_file, KIND)["step"] if pointer_file.exists() else 0


def load_checkpoint(folder: Path, settings_hash: str) -> Checkpoint | None:
    """The newest checkpoint of a run, or None where none was written yet.

    Raises:
        ArtifactError: the checkpoint is damaged, or was made with other settings.
    """
    remove_leftovers(folder)
    pointer_file = folder / POINTER_FILE
    if not pointer_file.exists():
        return None
    with odd_content_is_damage(pointer_file):
        return _load_checkpoint(pointer_file, settings_hash)


def _load_checkpoint(pointer_file: Path, settings_hash: str) -> Checkpoint:
    pointer = read_manifest(pointer_file, KIND)
    if not is_sealed(pointer):
        _check_older_pointer(pointer, pointer_file)
    if pointer["settings_hash"] != settings_hash:
        raise ArtifactError(
            f"{pointer_file} was made with other settings than this run has: "
            "resume with the settings of the run, or start over with --overwrite"
        )
    file = pointer_file.parent / pointer["file"]
    if not file.is_file():
        raise ArtifactError(f"{file}, named by {pointer_file}, is missing: start with --overwrite")
    if sha256_of(file) != pointer["sha256"]:
        raise ArtifactError(
            f"{file} is not the file that was saved (its SHA-256 differs): it is truncated or was "
            "changed; restore it from a copy, or start over with --overwrite"
        )
    tensors = read_tensors(file)
    torch.set_rng_state(tensors.pop("random_state"))
    # Checkpoints of older versions, and of runs on the CPU, hold no state of a GPU.
    for index in range(torch.cuda.device_count()):
        state = tensors.pop(f"random_state/cuda-{index}", None)
        if state is not None:
            torch.cuda.set_rng_state(state, index)
    tensors = {name: value for name, value in tensors.items() if "random_state/" not in name}
    stream: StreamState = dict(pointer["stream"])
    learners: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        room, _, rest = name.partition("/")
        if room == "stream":
            stream[rest] = tensor
        else:
            learner, _, key = rest.partition("/")
            learners.setdefault(learner, {})[key] = tensor
    return Checkpoint(pointer["step"], settings_hash, stream, learners)


def _check_older_pointer(pointer: dict[str, Any], path: Path) -> None:
    """Checkpoints of schema version 1 held their hash under another name."""
    rest = {key: value for key, value in pointer.items() if key != "pointer_hash"}
    if pointer.get("pointer_hash") != hash_of(rest):
        raise ArtifactError(
            f"{path} is incomplete or was edited (its own hash differs): restore it from a copy, "
            "or start over with --overwrite"
        )
