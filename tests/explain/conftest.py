"""Stores in which everything is known, written by the real builder."""

from __future__ import annotations

from tests.features.conftest import tiny_store, tiny_store_path, toy

__all__ = ["tiny_store", "tiny_store_path", "toy"]
