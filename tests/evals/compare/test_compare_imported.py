"""A dictionary from elsewhere beside ours in one comparison; its seed is unknown."""

from __future__ import annotations

import pytest

from saelab.cli import main
from saelab.evals.core.config import CoreConfig
from saelab.evals.core.suite import run_core
from saelab.text.contexts import describe_text

from .conftest import contents


@pytest.fixture
def both(save_trained, topk_dictionary, model_text, tmp_path, tiny_model_folder):
    """Ours, and another one of the same text that came by way of SAELens' format."""
    content = describe_text(model_text)["content_hash"]
    ours = save_trained(topk_dictionary(0), "ours", text_hash=content)
    given = save_trained(topk_dictionary(1), "given")
    assert main(["export", str(given), "--to", "saelens", "--out", str(tmp_path / "theirs")]) == 0
    settings = ["--model", str(tiny_model_folder), "--context-length", "32", "--device", "cpu"]
    text = ["--text-source", model_text.source, "--held-out-fraction", "0.5"]
    assert main(["import", str(tmp_path / "theirs"), *settings, *text, "--n-tokens", "320"]) == 0
    return ours, tmp_path / "theirs"


def test_a_foreign_dictionary_is_compared_with_ours(both, tmp_path):
    config = CoreConfig(n_tokens=320, n_loss_tokens=64, device="cpu")
    results = run_core(both, config)
    out = tmp_path / "comparison"
    options = ["--n-tokens", "320", "--n-loss-tokens", "64", "--device", "cpu"]
    words = ["compare", *map(str, both), "--out", str(out), *options, "--overwrite"]
    assert main(words) == 0
    rows = contents(out)["rows"]
    assert {row["label"] for row in rows} == {"topk", "saelens"}
    assert {seed for row in rows for seed in row["seeds"]} == {0, None}
    assert results[1].value("fvu") > 0


def test_dark_matter_and_steering_take_a_foreign_dictionary(both):
    theirs = str(both[1])
    rows = ["--n-tokens", "960", "--n-loss-tokens", "64", "--device", "cpu"]
    assert main(["eval", "dark-matter", theirs, *rows, "--analyses", "downstream"]) == 0
    steering = ["--n-tokens", "320", "--n-latents", "4", "--n-random", "4", "--n-contexts", "4"]
    words = ["eval", "steering", theirs, *steering, "--prompt-tokens", "8", "--device", "cpu"]
    assert main(words) == 0
