"""Fixtures of the activation cache: a model that is a table, a small text, and caches of both."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "harvest_program", Path(__file__).with_name("harvest_program.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["harvest_program"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def program():
    """The module `harvest_program`: TableModel, small_config, HOOK_POINTS."""
    return _load_program()


@pytest.fixture
def table_model(program):
    return program.TableModel()


@pytest.fixture(scope="session")
def small_text(tmp_path_factory):
    """A folder of documents, about 1,700 tokens, with some massive ones."""
    folder = tmp_path_factory.mktemp("text")
    for index in range(20):
        line = f"document {index} tells of {'the quick brown fox ' * (index % 5 + 1)} and ~ ends"
        (folder / f"{index:02d}.txt").write_text(line)
    return folder


@pytest.fixture
def make_cache(program, table_model, small_text, tmp_path):
    """Write a cache with some settings changed and open it."""

    def make(name: str = "cache", **changes):
        from saelab.cache.reader import open_cache
        from saelab.cache.writer import write_caches

        config = program.small_config(small_text, **changes)
        paths = write_caches(tmp_path / name, config, model=table_model)
        return open_cache(paths[0])

    return make
