"""`saelab planted`: the chain from planted features to the score card, resumed and refused."""

import contextlib
import json

import pytest

from saelab.cache.hook_folder import HookFolder
from saelab.cli import main
from saelab.commands import planted
from saelab.synthetic.cache import planted_manifest
from saelab.synthetic.presets import PRESETS
from saelab.training.config import TrainConfig
from saelab.training.methods import METHODS
from saelab.training.recipes import shipped_recipes

SMALL = ["--n-steps", "40", "--seeds", "0", "1", "--methods", "topk", "gradient_topk"]


@pytest.mark.slow
def test_planted_trains_scores_and_goes_on(tmp_path, capsys):
    out = tmp_path / "planted"
    assert main(["planted", "smoke", "--out", str(out), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "score card" in printed and "gradient_topk" in printed
    card = json.loads((out / "smoke" / "score_card.json").read_text())
    assert [entry["n_runs"] for entry in card["entries"]] == [2, 2]
    assert (out / "smoke" / "score_card.html").is_file()
    assert len(list((out / "smoke/train/dictionaries").glob("*/evals/recovery.json"))) == 4
    assert main(["info", str(out / "smoke" / "cache" / "planted")]) == 0

    weights = sorted((out / "smoke/train/dictionaries").glob("*/sae_weights.safetensors"))
    before = [path.read_bytes() for path in weights]
    assert main(["planted", "smoke", "--out", str(out), *SMALL]) == 2
    assert "give --resume to go on with it" in capsys.readouterr().err
    assert main(["planted", "smoke", "--out", str(out), *SMALL, "--resume"]) == 0
    assert [path.read_bytes() for path in weights] == before


def test_every_method_is_given_settings_it_can_meet_on_every_preset(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(planted, "_run", ran.append)
    command = planted.PlantedCommand(out=tmp_path, n_steps=8000)
    for name, config in PRESETS.items():
        with contextlib.suppress(FileNotFoundError):  # nothing was trained, so nothing is scored
            planted._run_preset(command, name, config)
    training = [words for words in ran if words[0] == "train"]
    assert len(training) == len(PRESETS)
    for words in training:
        assert main([*words, "--print-config"]) == 0, capsys.readouterr().err


def test_an_unfinished_cache_is_made_before_it_is_trained_on(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(planted, "_run", ran.append)
    config, cache = PRESETS["smoke"], tmp_path / "smoke" / "cache"
    HookFolder(cache / "planted", planted_manifest(config), 8).save_manifest()
    with contextlib.suppress(FileNotFoundError):  # nothing was trained, so nothing is scored
        planted._run_preset(planted.PlantedCommand(out=tmp_path, resume=True), "smoke", config)
    assert [words[0] for words in ran] == ["synthetic", "train"]


def test_mistakes_cost_one_line_and_write_nothing(tmp_path, capsys):
    out = str(tmp_path / "planted")
    assert main(["planted", "smoky", "--out", out]) == 2
    assert "unknown preset 'smoky'; did you mean 'smoke'" in capsys.readouterr().err
    assert main(["planted", "--out", out, "--n-steps", "0", "--resume", "--overwrite"]) == 2
    problem = capsys.readouterr().err
    assert "n_steps is 0" in problem and "exclude each other" in problem
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("name", ["papers", "planted"])
def test_the_recipes_of_comparisons_name_every_method(name):
    from saelab.config import load_yaml

    assert list(load_yaml(TrainConfig, shipped_recipes()[name]).methods) == list(METHODS)
