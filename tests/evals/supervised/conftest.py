"""The planted task judged once, for every test that reads its scores."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from saelab.evals.supervised.suite import SupervisedConfig

SPEC = importlib.util.spec_from_file_location("planted", Path(__file__).with_name("planted.py"))
assert SPEC is not None and SPEC.loader is not None
planted_module = importlib.util.module_from_spec(SPEC)
sys.modules.setdefault("planted", planted_module)
SPEC.loader.exec_module(planted_module)


@pytest.fixture(scope="session")
def planted():
    """The module of the planted task."""
    return planted_module


@pytest.fixture(scope="session")
def judged(tmp_path_factory):
    """(measurement, result, folder) of the planted task; identity, empty and always-on."""
    folder = tmp_path_factory.mktemp("planted")
    config = SupervisedConfig(
        task="planted",
        n_fit=240,
        n_interpret=240,
        n_eval=96,
        k=(1, 2, 4, 10),
        f1=(0.5, 0.8),
        resamples=50,
        out=folder / "out",
    )
    names = ("identity", "empty", "always")
    candidates = planted_module.planted_candidates(folder, names)
    model, task = planted_module.PlantedModel(), planted_module.planted_task()
    return *planted_module.judge(model, task, candidates, config), folder / "out"
