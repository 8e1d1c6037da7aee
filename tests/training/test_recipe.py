"""Recipes with parts: strict reading, printing back, a folder for each part, exact resume."""

import dataclasses

import pytest

from saelab.cli import main
from saelab.config import to_plain, to_yaml
from saelab.errors import ConfigError, SaelabError, Stopped
from saelab.formats.files import read_json
from saelab.training.config import TrainConfig
from saelab.training.recipe import WHOLE, in_own_folders, load_recipe, recipe_of, train_parts
from saelab.training.run_folder import deciding_settings

HOOK_POINTS = ("blocks.1.hook_resid_post", "blocks.1.hook_mlp_out")

RECIPE = """
k: [4]
d_sae: [64]
n_tokens: 1536
batch_rows: 256
checkpoint_every_steps: 2
device: cpu
optimizer: {learning_rate: 0.001, beta1: 0.8}
parts:
  resid:
    hook_point: blocks.1.hook_resid_post
    d_sae: [32, 64]
  mlp:
    hook_point: blocks.1.hook_mlp_out
    optimizer: {beta1: 0.9}
"""


@pytest.fixture(scope="module")
def two_caches(tiny_harvest, tmp_path_factory):
    from saelab.cache.writer import write_caches

    folder = tmp_path_factory.mktemp("two") / "c"
    write_caches(folder, dataclasses.replace(tiny_harvest, hook_points=HOOK_POINTS))
    return folder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def parts_of(recipe, cache, out):
    parts = load_recipe(recipe)
    parts = {name: dataclasses.replace(c, cache=cache, out=out) for name, c in parts.items()}
    return in_own_folders(parts)


def weights_of(out):
    files = sorted(out.glob("*/dictionaries/*/sae_weights.safetensors"))
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_a_part_is_the_shared_settings_with_its_own_in_their_place(recipe):
    parts = load_recipe(recipe)
    assert list(parts) == ["resid", "mlp"]
    assert parts["resid"].d_sae == (32, 64) and parts["mlp"].d_sae == (64,)
    # A nested setting is replaced alone; its neighbours stay those that all parts share.
    assert parts["mlp"].optimizer.beta1 == 0.9 and parts["mlp"].optimizer.learning_rate == 1e-3
    assert parts["resid"].optimizer.beta1 == 0.8
    own = in_own_folders(parts)
    assert own["mlp"].out == parts["mlp"].out / "mlp"


def test_a_recipe_without_parts_is_one_run_in_out_itself(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text("k: [4]\n")
    parts = load_recipe(path)
    assert parts == {WHOLE: TrainConfig(k=(4,))} == in_own_folders(parts)


@pytest.mark.parametrize("text", [RECIPE, "k: [4]\n"])
def test_a_recipe_written_out_is_read_back_equal(text, tmp_path):
    path, copy = tmp_path / "a.yaml", tmp_path / "b.yaml"
    path.write_text(text)
    copy.write_text(to_yaml(recipe_of(load_recipe(path))))
    assert load_recipe(copy) == load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts: []\n", r"parts must map the name of each part to its settings \(got \[\]\)"),
        ("parts: {a/b: {}}\n", "part 'a/b' cannot be a folder's name"),
        ("parts: {a: 3}\n", r"part 'a' must hold settings \(got 3\)"),
        ("parts: {a: {out: x}}\n", "part 'a' names an out of its own"),
        ("parts: {a: {d_sea: [4]}}\n", "part a: unknown field 'd_sea'; did you mean 'd_sae'"),
        ("parts: {a: {k: [0]}, b: {k: [-1]}}\n", "(?s)contains 0.*part b.*contains -1"),
    ],
)
def test_wrong_parts_are_refused_in_words(text, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_one_command_trains_every_part_into_its_folder(recipe, two_caches, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["train", str(recipe), "--cache", str(two_caches), "--out", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "mlp" in printed and "s in all" in printed
    assert list(weights_of(out)) == [
        "mlp/dictionaries/topk-d64-k4-s0/sae_weights.safetensors",
        "resid/dictionaries/topk-d32-k4-s0/sae_weights.safetensors",
        "resid/dictionaries/topk-d64-k4-s0/sae_weights.safetensors",
    ]
    manifest = read_json(out / "mlp/dictionaries/topk-d64-k4-s0/saelab.json")
    assert manifest["made_from"]["hook_point"] == HOOK_POINTS[1]
    assert main(words) == 2
    assert "already holds a run: give --resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert main([*words, "--resume", "--k", "8"]) == 2
    assert "was started with other settings (k differ)" in capsys.readouterr().err


def test_stopped_in_the_second_part_and_resumed_is_bit_identical(
    recipe, two_caches, tmp_path, monkeypatch
):
    whole = parts_of(recipe, two_caches, tmp_path / "whole")
    train_parts(whole)
    from saelab.training import run as run_module

    save = run_module.save_checkpoint
    saves = []

    def save_then_stop(*args):
        save(*args)
        saves.append(args)
        if len(saves) == 4:
            raise Stopped("enough")

    monkeypatch.setattr(run_module, "save_checkpoint", save_then_stop)
    parts = parts_of(recipe, two_caches, tmp_path / "cut")
    with pytest.raises(Stopped):
        train_parts(parts)
    assert read_json(parts["resid"].out / "run.json")["status"] == "complete"
    assert read_json(parts["mlp"].out / "run.json")["status"] == "running"
    monkeypatch.undo()
    runs = train_parts(parts, resume=True)
    assert {run["status"] for run in runs.values()} == {"complete"}
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")


def test_resuming_trains_parts_that_were_not_begun(recipe, two_caches, tmp_path):
    parts = parts_of(recipe, two_caches, tmp_path / "out")
    train_parts({"resid": parts["resid"]})
    train_parts(parts, resume=True)
    assert len(weights_of(tmp_path / "out")) == 3


def test_every_part_is_checked_before_the_first_is_trained(recipe, tiny_cache, tmp_path):
    parts = parts_of(recipe, tiny_cache, tmp_path / "out")
    with pytest.raises(SaelabError, match=r"is a cache of 'blocks\.1\.hook_resid_post'"):
        train_parts(parts)
    assert not (tmp_path / "out").exists()


def test_parts_never_mix_with_a_run_in_the_same_folder(recipe, two_caches, tmp_path):
    parts = parts_of(recipe, two_caches, tmp_path / "out")
    with pytest.raises(ConfigError, match="holds no run to resume: leave out --resume"):
        train_parts(parts, resume=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a run of its own, and this recipe has parts"):
        train_parts(parts)


def test_the_frozen_decoder_of_before_is_read(tmp_path):
    """Until every method had `decoder`, two had `freeze_decoder`; their runs can be resumed."""
    path = tmp_path / "old.yaml"
    for before, now in (("true", "frozen"), ("false", "free")):
        path.write_text(f"options: {{topk: {{freeze_decoder: {before}}}}}\n")
        config = load_recipe(path)[WHOLE]
        assert config.options.topk.decoder == now
        plain = to_plain(config)
        old = {**plain, "options": {**plain["options"], "topk": {**plain["options"]["topk"]}}}
        old["options"]["topk"].pop("decoder", None)
        old["options"]["topk"]["freeze_decoder"] = before == "true"
        assert deciding_settings(old) == deciding_settings(plain)
