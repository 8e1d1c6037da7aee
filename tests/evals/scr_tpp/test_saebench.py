"""The functions of sae-bench 0.6.0 on the same dictionary and tensors as ours.

python3 -m venv .venv-saebench && .venv-saebench/bin/pip install sae-bench==0.6.0
    .venv-saebench/bin/pip uninstall torchvision  # of GPUs, which does not load beside a CPU torch
SAELAB_SAEBENCH_PYTHON=.venv-saebench/bin/python python -m pytest -m interchange FILE
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from saelab.dictionary import Dictionary
from saelab.evals.labelled.activations import ExampleRows, pooled_codes
from saelab.evals.probing.probes import LinearProbe, strongest_features
from saelab.evals.scr_tpp.ablation import Pooled, top_latents
from saelab.evals.scr_tpp.numbers import numbers_of

PYTHON = os.environ.get("SAELAB_SAEBENCH_PYTHON")
PEER = Path(__file__).parents[1] / "saebench_peer.py"
pytestmark = [
    pytest.mark.interchange,
    pytest.mark.skipif(PYTHON is None, reason="SAELAB_SAEBENCH_PYTHON names no interpreter"),
]
N, TOKENS, D, LATENTS = 40, 6, 12, 30


@pytest.fixture(scope="module")
def given():
    generator = np.random.default_rng(0)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    decoder = normal(LATENTS, D)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    positive = np.arange(N) % 2 == 0
    activations = normal(N, TOKENS, D)
    activations[positive, :, 0] += 1
    return {
        "activations": activations,
        "positive": positive,
        "W_enc": decoder.T.copy(),
        "W_dec": decoder,
        "b_enc": 0.1 * normal(LATENTS),
        "b_dec": 0.1 * normal(D),
        "probe": normal(D),
        "clean": np.array([0.9, 0.8, 0.95]),
        "after": generator.uniform(0.4, 0.9, (3, 3)),
    }


@pytest.fixture(scope="module")
def pooled(given):
    tensors = {n: torch.from_numpy(given[n]) for n in ("W_enc", "W_dec", "b_enc", "b_dec")}
    rows = ExampleRows(
        rows=torch.from_numpy(given["activations"].reshape(-1, D)),
        example=torch.arange(N).repeat_interleave(TOKENS),
        content_hash="",
    )
    codes = pooled_codes(Dictionary("relu", **tensors), rows)
    return Pooled(rows.pooled(), codes, given["W_dec"].astype(np.float64))


@pytest.fixture(scope="module")
def theirs_says(given, pooled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saebench")
    codes = pooled.codes.toarray().astype(np.float32)
    np.savez(folder / "given.npz", **given, codes=codes)
    command = [PYTHON, str(PEER), str(folder / "given.npz"), str(folder / "said.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "said.npz"))


def test_effects_ablations_and_tpp_agree(given, pooled, theirs_says):
    probe = LinearProbe(weight=given["probe"].astype(np.float64), offset=0.0)
    effects = pooled.effects(probe, np.arange(N), given["positive"], signed=True)
    np.testing.assert_allclose(effects, theirs_says["effects_tpp"], rtol=1e-4, atol=1e-6)
    latents = top_latents(effects, 5)
    assert set(latents) == set(np.flatnonzero(theirs_says["chosen"]))
    ablated = pooled.ablated(np.arange(N), latents)
    np.testing.assert_allclose(ablated, theirs_says["ablated"], rtol=1e-4, atol=1e-5)
    fallen = given["clean"] - given["after"]
    rows = [
        {
            "set": "s",
            "class": i,
            "split": 0,
            "ablated": "latents",
            "n": 5,
            "clean": given["clean"][i],
            "intended": fallen[i, i],
            "unintended": np.delete(fallen[i], i).mean(),
        }
        for i in range(3)
    ]
    rows += [
        {**row, "ablated": what, "n": n}
        for row in rows
        for what, n in (("random", 5), ("directions", 0))
    ]
    assert numbers_of(rows, [], (5,))["tpp_5"] == pytest.approx(float(theirs_says["tpp"]), abs=1e-7)


def test_k_sparse_probes_agree(given, pooled, theirs_says):
    codes = pooled.codes.toarray()
    chosen = strongest_features(codes, given["positive"], 3)
    assert set(chosen) == set(np.flatnonzero(theirs_says["top_k"]))
    half = N // 2
    features = codes[:, np.sort(chosen)]
    plain = LogisticRegression(C=1, max_iter=1000)
    plain.fit(features[:half], given["positive"][:half])
    accuracy = plain.score(features[half:], given["positive"][half:])
    assert accuracy == pytest.approx(float(theirs_says["accuracy"]), abs=1e-6)
