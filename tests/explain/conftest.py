"""Stores in which everything is known, written by the real builder."""

from __future__ import annotations

import pytest

from tests.explain.planted import write_planted_store
from tests.features.conftest import tiny_store, tiny_store_path, toy

__all__ = ["tiny_store", "tiny_store_path", "toy"]


@pytest.fixture(scope="session")
def planted_path(tmp_path_factory):
    """File of the store with planted triggers."""
    return write_planted_store(tmp_path_factory.mktemp("planted"))
