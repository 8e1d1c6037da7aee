"""Reading a source in a test, and changing its files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from saelab.dictionary.importers import read_foreign, resolve
from saelab.dictionary.importers.foreign import Foreign


def read(path: Path, format_name: str | None = None) -> list[Foreign]:
    """Its dictionaries."""
    return list(read_foreign(resolve(str(path)), format_name))


def read_one(path: Path, format_name: str | None = None) -> Foreign:
    """Its only dictionary."""
    (foreign,) = read(path, format_name)
    return foreign


def change(path: Path, **settings: object) -> None:
    """Change settings of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def load(path: Path) -> dict:
    """The tensors of a safetensors file or a pickle."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


def save(path: Path, tensors: dict) -> None:
    """Write them back; what is None is left out."""
    tensors = {name: held for name, held in tensors.items() if held is not None}
    if path.suffix == ".safetensors":
        save_file({name: held.contiguous() for name, held in tensors.items()}, path)
    else:
        torch.save(tensors, path)
