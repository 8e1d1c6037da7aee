"""What importers read: weights, settings, tensors by name; and glances that tell formats apart."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import read_json, read_tensors
from saelab.formats.yaml_files import read_yaml


def load_weights(path: Path) -> dict[str, Any]:
    """The content of a weights file: safetensors, npz, or a pickle of tensors alone.

    Nothing in a file is run: a pickle that holds more than tensors, numbers and containers is
    refused.

    Raises:
        ArtifactError: the file is missing, damaged, of another kind, or would have to be run.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: get the whole dictionary again")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        if path.suffix == ".npz":
            # The handle is ours, since numpy leaves a damaged file open.
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ArtifactError(
            f"{path} holds Python objects that would have to be run to be read, which saelab never "
            "does: ask its authors for the weights alone (a state_dict or safetensors)"
        ) from None
    except Exception as error:
        raise ArtifactError(
            f"{path} cannot be read ({str(error).splitlines()[0][:120]}): it is damaged, cut short "
            "or no weights file; get it again"
        ) from None
    if not isinstance(content, dict):
        raise ArtifactError(
            f"{path} holds a {type(content).__name__}, not a table of tensors: this is no "
            "dictionary that saelab knows"
        )
    return content


def load_config(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a table.

    Raises:
        ArtifactError: it is missing, damaged or holds something else.
    """
    try:
        is_yaml = path.suffix in (".yaml", ".yml") and path.is_file()
        content = read_yaml(path) if is_yaml else read_json(path)
    except ConfigError as error:
        raise ArtifactError(str(error)) from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds no table of settings: get it again")
    return content


def peek_config(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a table, for recognising a format; else empty."""
    try:
        return load_config(path)
    except (ArtifactError, OSError):
        return {}


def single_file(path: Path, *suffixes: str) -> Path | None:
    """A file with one of some suffixes: the path itself, or the only one in a folder."""
    if path.is_file():
        return path if path.suffix in suffixes else None
    files = [each for each in path.glob("*") if each.suffix in suffixes and each.is_file()]
    return files[0] if len(files) == 1 else None


def peek_shapes(path: Path | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a weights file, for recognising a format; its tensors are not read.

    What is no tensor has the shape (). A file that cannot be read without running it has none.
    """
    from safetensors import safe_open

    if path is None or not path.is_file():
        return {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                names = list(file.keys())
                return {name: tuple(file.get_slice(name).get_shape()) for name in names}
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return {}
    table = content if isinstance(content, dict) else {}
    return {str(name): tuple(getattr(value, "shape", ())) for name, value in table.items()}


def take(
    weights: Mapping[str, Any], path: Path, *names: str, optional: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Tensors by name, in float32.

    Args:
        weights: as `load_weights` gives them.
        path: where they are from, for messages.
        names: which there must be.
        optional: which there may be.

    Raises:
        ArtifactError: one is missing or no tensor of numbers.
    """
    present = (*names, *(name for name in optional if name in weights))
    require_tensors(weights, path, *present)
    taken = {}
    for name in present:
        taken[name] = weights[name].detach().float()
        # Its sum takes no mask as large as the tensor, and is not finite where any entry is not.
        if not bool(taken[name].sum().isfinite()) and not bool(taken[name].isfinite().all()):
            raise ArtifactError(f"{path}: {name} holds a NaN or an infinity: get it again")
    return taken


def require_tensors(weights: Mapping[str, Any], path: Path, *names: str) -> None:
    """Refuse a file that lacks tensors, which are not read.

    Raises:
        ArtifactError: one is missing or no tensor.
    """
    missing = [name for name in names if name not in weights]
    if missing:
        raise ArtifactError(
            f"{path} lacks the tensors {', '.join(missing)} (it holds {', '.join(weights)[:200]}): "
            "it is of another format or incomplete"
        )
    for name in names:
        if not isinstance(weights[name], Tensor):
            held = type(weights[name]).__name__
            raise ArtifactError(f"{path}: {name} is a {held}, not a tensor")


def require_shapes(
    tensors: Mapping[str, Tensor], path: Path, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuse tensors of other shapes than a file's settings promise.

    Raises:
        ArtifactError: one has another shape; the message names the first.
    """
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != tuple(shape):
            raise ArtifactError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, its settings promise "
                f"{tuple(shape)}: it is damaged, or the two are of different dictionaries"
            )


def renamed(weights: Mapping[str, Any], path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by saelab's names; weights of linear layers (`encoder.weight`) are transposed.

    Args:
        weights: as `load_weights` gives them.
        path: where they are from, for messages.
        names: saelab's name -> the file's.

    Raises:
        ArtifactError: one is missing or no tensor of numbers.
    """
    taken = take(weights, path, *names.values())
    return {
        ours: taken[given].T if given.endswith(".weight") else taken[given]
        for ours, given in names.items()
    }
