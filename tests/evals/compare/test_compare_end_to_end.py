"""Train on the tiny model, compare in one command, look again: the real suites from end to end."""

from __future__ import annotations

import pytest

from saelab.cache.config import HarvestConfig
from saelab.cache.writer import write_caches
from saelab.cli import main as cli
from saelab.evals.compare.suite import CompareConfig, run_compare
from saelab.text.contexts import TextConfig
from saelab.training.config import TrainConfig
from saelab.training.run import train

from .conftest import contents

SETTINGS = ("--n-tokens", "256", "--n-loss-tokens", "128", "--steering-latents", "4")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_folder):
    """Two methods, two L0 values and two seeds, trained for a moment."""
    folder = tmp_path_factory.mktemp("compare")
    words = folder / "words"
    words.mkdir()
    for index in range(40):
        text = f"number {index}: the king met the queen at mill {index % 7} near the wide river. "
        (words / f"{index:02}.txt").write_text(text * (3 + index % 5))
    (cache,) = write_caches(
        folder / "cache",
        HarvestConfig(
            model=str(tiny_model_folder),
            hook_points=("blocks.1.hook_resid_post",),
            text=TextConfig(source=str(words), held_out_fraction=0.3),
            context_length=32,
            n_tokens=2048,
            batch_contexts=8,
            model_dtype="float32",
            device="cpu",
        ),
    )
    config = TrainConfig(
        out=folder / "run",
        cache=cache,
        methods=("topk", "batch_topk"),
        d_sae=(64,),
        k=(4, 8),
        seeds=(0, 1),
        n_tokens=256 * 8,
        batch_rows=256,
        calibration_rows=512,
        device="cpu",
    )
    train(config)
    return config.out


def files_of(run):
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_one_command_evaluates_compares_and_is_quick_to_repeat(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli(["compare", str(run), "--out", str(out), "--device", "cpu", *SETTINGS]) == 0
    assert "difference to topk" in capsys.readouterr().out
    content = contents(out)
    assert len(content["dictionaries"]) == 8
    assert not content["notes"]
    for row in content["rows"]:
        values = row["values"]
        assert values["fvu"]["mean"] > 0 and values["fvu"]["sd"] > 0
        assert abs(values["l0_mean"]["mean"] - row["k"]) < 0.5 * row["k"]
        assert values["mcs_share"]["n"] == 2
        assert values["train_seconds"]["mean"] > 0
        assert values["steering_size"]["n"] == (1 if row["k"] == 4 else 0)
    assert content["charts"] == [
        "pareto_fvu",
        "pareto_loss_recovered_mean",
        "difference_fvu",
        "difference_loss_recovered_mean",
        "dead_and_underused",
        "density_by_rank_0",
        "density_by_rank_1",
        "consistency_by_rank",
        "consistency_by_cosine",
        "steering_size",
        "steering_consistency",
        "train_seconds",
        "state_mib",
    ]
    assert not [*run.rglob("core.html")], "the page of the comparison stands for all"

    before = files_of(run)
    again = tmp_path / "again"
    config = CompareConfig(
        out=again, n_tokens=256, n_loss_tokens=128, steering_latents=4, device="cpu"
    )
    run_compare([run], config)
    assert files_of(run) == before, "what exists is used as it is"
    repeated = contents(again)
    assert repeated["rows"] == content["rows"]
    assert repeated["common_l0"] == content["common_l0"]


@pytest.mark.slow
def test_another_dtype_is_another_setting(run, tmp_path, capsys):
    words = ["compare", str(run), "--out", str(tmp_path / "out"), "--device", "cpu", *SETTINGS]
    assert cli(words) == 0
    capsys.readouterr()
    assert cli([*words, "--model-dtype", "bfloat16"]) == 2
    assert "model_dtype None, not bfloat16" in capsys.readouterr().err
