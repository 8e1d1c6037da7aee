"""A folder of runs in which everything is known, and the app opened on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

# pytest imports test files by path, so the modules beside them have to be made known.
sys.path.append(str(Path(__file__).parent))
from toy_store import N_FEATURES, decoder, page_opener, write_dictionary, write_toy_store

MORE = ", on every token that counts, as many words as a definition that is told in full has" * 2


def write_core_result(folder: Path, fvu: float, l0: float) -> None:
    """A core evaluation with the numbers that pages show."""
    (folder / "evals").mkdir()
    metrics = [
        {
            "name": name,
            "value": value,
            "unit": "1",
            "definition": f"as planted{MORE * (name == 'kl')}",
        }
        for name, value in (("fvu", fvu), ("l0_mean", l0), ("kl", 0.125))
    ]
    (folder / "evals" / "core.json").write_text(
        json.dumps(
            {
                "kind": "evaluation_result",
                "schema_version": 1,
                "created": "2026-01-01T00:00:00+00:00",
                "library_versions": {},
                "seed": 0,
                "suite": "core",
                "dictionary": {"name": folder.name, "hash": "toyhash"},
                "settings": {},
                "made_from": {},
                "config": {},
                "metrics": metrics,
                "figure_data": {},
                "item_files": {},
            }
        )
    )


def write_world(root: Path) -> Path:
    """One run with two dictionaries, both with feature stores; the second is the first reversed."""
    run = root / "demo"
    first = write_dictionary(run / "dictionaries" / "first", decoder(), "toyhash")
    second = write_dictionary(run / "dictionaries" / "second", decoder()[::-1], "otherhash")
    for folder, content_hash in ((first, "toyhash"), (second, "otherhash")):
        write_toy_store(folder / "features.sqlite", content_hash)
    write_core_result(first, 0.25, 2.5)
    write_core_result(second, 0.5, 1.25)
    (run / "run.json").write_text(
        json.dumps(
            {
                "kind": "training_run",
                "schema_version": 1,
                "created": "2026-01-01T00:00:00+00:00",
                "status": "complete",
            }
        )
    )
    assert len(decoder()) == N_FEATURES
    return root


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder of runs; read-only, but for labels."""
    return write_world(tmp_path_factory.mktemp("runs") / "all")


@pytest.fixture
def open_page(world, monkeypatch):
    """`open_page("explore", f="3")`: a page of the app, run once."""
    return page_opener(monkeypatch, world)


@pytest.fixture
def open_page_of(monkeypatch):
    """`open_page_of(folder)("home")`: the app opened on another folder."""
    return lambda *roots: page_opener(monkeypatch, *roots)
