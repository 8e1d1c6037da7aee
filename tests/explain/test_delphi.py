"""Detection, fuzzing and simulation equal to delphi's own on the same examples and answers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from saelab.explain.evidence import EvidenceSettings, gather, strong_pieces
from saelab.explain.scores import judged
from saelab.features.reader import FeatureStore

pytestmark = pytest.mark.interchange


class Replayed:
    """Judges as delphi was answered."""

    def __init__(self, theirs):
        self.said = {
            name: {row["text"]: row["prediction"] for row in theirs[name]["rows"]}
            for name in ("detection", "fuzzing")
        }
        self.guesses = theirs["guesses"]

    def detect(self, description, windows):
        return [self.said["detection"]["".join(window.texts)] for window in windows]

    def fuzz(self, description, windows):
        return [self.said["fuzzing"]["".join(window.texts)] for window, _ in windows]

    def simulate(self, description, windows):
        return [np.array(guess) for guess in self.guesses]


def test_delphi_computes_what_we_compute(planted_path, peers_python, tmp_path):
    with FeatureStore(planted_path) as store:
        evidence = gather(store, 0, EvidenceSettings(n_quiet=15), seed=0)
    windows = evidence.held_out + evidence.quiet
    assert len({"".join(window.texts) for window in windows}) == len(windows) == 35
    assert all(window.counted[1:].all() for window in windows)
    examples = [
        {
            "texts": list(window.texts),
            "activations": [float(value) for value in window.activations],
            "fires": bool(window.value > 0),
        }
        for window in windows
    ]
    given, wanted = tmp_path / "examples.json", tmp_path / "scores.json"
    given.write_text(json.dumps(examples))
    done = subprocess.run(
        [str(peers_python), str(Path(__file__).parent / "delphi_scores.py"), given, wanted],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(wanted.read_text())
    unread = [row["prediction"] is None for row in theirs["detection"]["rows"]]
    assert any(unread) and not all(unread)

    ours = {
        score.name: score
        for score in judged(Replayed(theirs), evidence, "", shuffled=None, random=None)
    }
    for name in ("detection", "fuzzing"):
        assert ours[name].value == theirs[name]["accuracy"]
        assert ours[name].n == sum(r["prediction"] is not None for r in theirs[name]["rows"])
    assert ours["simulation"].value == pytest.approx(theirs["simulation"], abs=1e-12)
    # The tokens that delphi marks in firing examples are those that we mark.
    asked = "\n".join(theirs["fuzzing"]["asked"])
    for window in evidence.held_out:
        assert marked_as_delphi_does(window) in asked


def marked_as_delphi_does(window):
    strong, text = set(strong_pieces(window)), ""
    for index, piece in enumerate(window.texts):
        opening = "<<" if index in strong and index - 1 not in strong else ""
        closing = ">>" if index in strong and index + 1 not in strong else ""
        text += opening + piece + closing
    return text
