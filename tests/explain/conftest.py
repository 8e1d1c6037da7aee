"""Stores in which everything is known, written by the real builder."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.explain.planted import write_planted_store
from tests.features.conftest import tiny_store, tiny_store_path, toy

__all__ = ["tiny_store", "tiny_store_path", "toy"]


@pytest.fixture
def toy_folder(tmp_path, tiny_store_path):
    """The toy's dictionary folder as far as reading features needs it, with its store."""
    folder = tmp_path / "toy"
    folder.mkdir()
    shutil.copy(tiny_store_path, folder / "features.sqlite")
    saved = {"content_hash": "d" * 64, "files": {"sae_weights.safetensors": "e" * 64}}
    (folder / "saelab.json").write_text(json.dumps(saved))
    return folder


@pytest.fixture(scope="session")
def planted_path(tmp_path_factory):
    """File of the store with planted triggers."""
    return write_planted_store(tmp_path_factory.mktemp("planted"))
