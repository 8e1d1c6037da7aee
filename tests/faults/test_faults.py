"""The small campaign finds no fault, and the page says what the whole one counted."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
PARTS = ("kills", "mutations", "mending", "limits", "pairs")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"faults_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the small campaign found, in a process of its own: it forks."""
    out = tmp_path_factory.mktemp("faults") / "counts.json"
    command = [sys.executable, "-W", "ignore", HERE / "campaign.py", "--small", "--out", out]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert out.exists(), ended.stdout[-2000:] + ended.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_small_campaign_finds_no_fault(report, part):
    assert report["counts"][part]
    assert [fault for fault in report["faults"] if fault.startswith(f"{part}: ")] == []


def test_the_page_says_what_the_whole_campaign_counted():
    table = load("table")
    counts = json.loads((HERE / "counts.json").read_text())
    page = (HERE.parents[1] / "docs" / "reliability.md").read_text()
    assert f"{table.BEGIN}\n{table.table(counts)}{table.END}" in page


def test_the_whole_campaign_tried_enough_and_every_kind():
    from saelab.formats.kinds import KINDS

    counts = json.loads((HERE / "counts.json").read_text())["counts"]
    assert set(counts["mutations"]) == set(KINDS)
    assert sum(row["kills"] for row in counts["kills"].values()) >= 300
    assert sum(row["damaged"] for row in counts["mutations"].values()) >= 10_000
    assert sum(row["trials"] for row in counts["pairs"].values()) >= 200
    assert len(counts["limits"]) == 4
