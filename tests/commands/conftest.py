"""Commands that write, with something small to read, for tests of what may come in their way."""

from __future__ import annotations

import pytest

from saelab.cli import main

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny_model_folder, model_text):
    """Words of commands that write to {out}, by name; what they read lies on another disk."""
    folder = tmp_path_factory.mktemp("made")
    model = ["--model", str(tiny_model_folder), "--model-dtype", "float32", "--device", "cpu"]
    text = ["--text.source", model_text.source, "--text.held-out-fraction", "0.5"]
    cache = ["cache", "{out}/cache", *model, *text, "--hook-points", HOOK, "--n-tokens", "1024"]
    cache += ["--context-length", "32", "--batch-contexts", "4", "--contexts-per-shard", "8"]
    train = ["train", "--cache", f"{folder}/cache", "--out", "{out}/run", "--device", "cpu"]
    train += ["--d-sae", "64", "--k", "4", "--n-tokens", "1280", "--batch-rows", "64"]
    train += ["--log-every-steps", "2", "--checkpoint-every-steps", "5", "--seeds", "0", "1"]
    for words in (cache, train):
        assert main([word.format(out=folder) for word in words]) == 0
    first = f"{folder}/run/dictionaries/topk-d64-k4-s0"
    foreign = folder / "foreign"
    assert main(["export", first, "--to", "dictionary_learning", "--out", str(foreign)]) == 0
    core = ["eval", "core", first, "--out", "{out}/evals", "--n-tokens", "256"]
    features = ["features", "{out}/sae", "--n-tokens", "320", "--device", "cpu"]
    return {
        "cache": cache,
        "train": train,
        "synthetic": ["synthetic", "smoke", "{out}/planted", "--n-rows", "2000"],
        "eval": [*core, "--n-loss-tokens", "64", "--device", "cpu"],
        "features": features,
        "compare": ["compare", f"{folder}/run", "--out", "{out}/compared"],
        "import": ["import", str(foreign), "--out", "{out}/imported", "--unproved"],
        "quickstart": ["quickstart", "--out", "{out}/quick"],
        "planted": ["planted", "smoke", "--out", "{out}/toys"],
        "export": ["export", first, "--to", "saelens", "--out", "{out}/exported"],
        "features export": [*features, "--export", "parquet", "{out}/exported"],
        "dictionary": first,
    }
