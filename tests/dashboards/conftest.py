"""A folder of runs in which everything is known, and the app opened on it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

# pytest imports test files by path, so the modules beside them have to be made known.
sys.path.append(str(Path(__file__).parent))
from toy_store import APP, D_IN, N_FEATURES, decoder, write_toy_store


def write_dictionary(folder: Path, rows: np.ndarray, content_hash: str) -> Path:
    """A dictionary's folder as far as the dashboard reads it."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file({"W_dec": rows.astype(np.float32)}, str(folder / "sae_weights.safetensors"))
    (folder / "cfg.json").write_text(
        json.dumps(
            {
                "architecture": "relu",
                "d_in": D_IN,
                "d_sae": len(rows),
                "metadata": {"model_name": "toy-model", "hook_name": "blocks.0.hook_resid_post"},
            }
        )
    )
    (folder / "saelab.json").write_text(
        json.dumps(
            {
                "kind": "dictionary",
                "schema_version": 1,
                "config": {"method": "relu", "measured_l0": 2.5, "fvu_on_training_rows": 0.25},
                "made_from": {"model": "toy-model", "hook_point": "blocks.0.hook_resid_post"},
                "files": {"sae_weights.safetensors": "0" * 64},
                "content_hash": content_hash,
            }
        )
    )
    return folder


def write_core_result(folder: Path, fvu: float, l0: float) -> None:
    """A core evaluation with the numbers that pages show."""
    (folder / "evals").mkdir()
    metrics = [
        {"name": name, "value": value, "unit": "1", "definition": "as planted"}
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


def page_opener(monkeypatch, *roots):
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("SAELAB_DASHBOARD_ROOTS", json.dumps([os.fspath(root) for root in roots]))

    def open_page(name: str = "home", **params: str) -> AppTest:
        app = AppTest.from_file(str(APP), default_timeout=30)
        for key, value in params.items():
            app.query_params[key.rstrip("_")] = value
        if name != "home":
            app.switch_page(f"{name}.py")
        return app.run()

    return open_page
