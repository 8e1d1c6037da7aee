"""Fixtures of the importers' tests: dictionaries of other libraries, where they are and copied."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saelab.dictionary import Dictionary, save_dictionary
from saelab.dictionary.importers import Source, resolve

# pytest imports test files by path, so the modules beside them have to be made known.
sys.path.append(str(Path(__file__).parent))
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def source_of() -> Callable[[str], Source]:
    """A function that gives the source of a case.

    Its folder, the only folder in it, or, where folders' names say what a dictionary is of, the
    folder `source` in the last of them.
    """

    def find(case: str) -> Source:
        folder = FIXTURES / case
        named = next(folder.rglob("source"), None)
        nested = [named] if named else [path for path in folder.iterdir() if path.is_dir()]
        return resolve(str(nested[0] if len(nested) == 1 else folder))

    return find


@pytest.fixture
def copied(tmp_path, source_of) -> Callable[[str], Path]:
    """A function that copies the source of a case to a folder that a test may change."""

    def copy(case: str) -> Path:
        source = source_of(case).path
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        (folder / "expected.safetensors").unlink(missing_ok=True)
        return folder

    return copy


@pytest.fixture
def folder(tmp_path) -> Path:
    """A dictionary of saelab's."""
    eye = torch.eye(4)
    dictionary = Dictionary(
        "relu", W_enc=eye, W_dec=eye, b_enc=torch.zeros(4), b_dec=torch.zeros(4)
    )
    made_from = {"model": "m", "hook_point": "blocks.1.hook_resid_post", "context_length": 8}
    save_dictionary(
        tmp_path / "sae",
        dictionary,
        self_test_inputs=torch.randn(16, 4),
        training={"method": "relu"},
        made_from=made_from,
    )
    return tmp_path / "sae"
