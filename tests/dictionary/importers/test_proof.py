"""Damage of the kinds that importing makes, on a dictionary that was trained: each is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelab.cache.config import HarvestConfig
from saelab.cache.writer import write_caches
from saelab.cli import main
from saelab.dictionary import importers, load_dictionary
from saelab.dictionary.importers import Source
from saelab.dictionary.importers.foreign import SCALE, in_raw_units
from saelab.formats.files import read_json, read_tensors, write_json, write_tensors
from saelab.training.config import OptimizerConfig, TrainConfig
from saelab.training.run import train

CONTEXT = 32
HOOK_POINT = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def trained(tiny_model_folder, model_text, tmp_path_factory) -> Path:
    """The folder of a dictionary that saelab trained on the tiny model."""
    folder = tmp_path_factory.mktemp("proof")
    harvest = HarvestConfig(
        model=str(tiny_model_folder),
        hook_points=(HOOK_POINT,),
        text=model_text,
        context_length=CONTEXT,
        n_tokens=2048,
        batch_contexts=8,
        model_dtype="float32",
        device="cpu",
    )
    write_caches(folder / "caches", harvest)
    config = TrainConfig(
        out=folder / "run",
        cache=folder / "caches",
        d_sae=(64,),
        k=(8,),
        n_tokens=256 * 150,
        batch_rows=256,
        device="cpu",
        optimizer=OptimizerConfig(learning_rate=5e-3),
    )
    (key,) = train(config)["dictionaries"]
    return folder / "run" / "dictionaries" / key


@pytest.fixture
def imported(trained, tmp_path, tiny_model_folder, model_text, capsys):
    """A function that imports the dictionary as SAELens' with other tensors, and what is said."""
    config = read_json(trained / "cfg.json")
    config["metadata"] |= {"training_library": None, "l0": 8.0}
    text = ["--text-source", str(model_text.source), "--held-out-fraction", "0.5"]
    options = [*text, "--model", str(tiny_model_folder), "--n-tokens", "640", "--device", "cpu"]

    def import_it(changes=None, *more: str, **settings) -> str:
        tensors = load_dictionary(trained).dictionary.tensors() | (changes or {})
        folder = tmp_path / "sae"
        (folder / "saelab.json").unlink(missing_ok=True)
        write_tensors(folder / "sae_weights.safetensors", tensors)
        write_json(folder / "cfg.json", config | settings)
        assert main(["import", str(folder), *options, *more]) == 0
        return capsys.readouterr().out

    return import_it


def test_nothing_is_said_of_a_dictionary_as_it_was_trained(imported):
    said = imported()
    assert "WARNING" not in said and "Likely cause" not in said


@pytest.fixture
def thresholded(trained):
    """The tensors of the dictionary with a threshold, since TopK finds its latents at any scale."""
    dictionary = load_dictionary(trained).dictionary
    rows = read_tensors(trained / "self_test.safetensors")["inputs"]
    heights = (rows - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc
    threshold = torch.full_like(dictionary.b_enc, float(heights.quantile(1 - 8 / 64)))
    return dictionary.tensors() | {"threshold": threshold}


@pytest.mark.parametrize(
    ("scale_of", "words"),
    [
        (lambda rows: 32**0.5 / rows.norm(dim=1).mean(), "to norm √d_in"),
        (lambda rows: 1 / rows.norm(dim=1).mean(), "to norm 1"),
        (lambda rows: 1 / rows.std(dim=0).square().mean().sqrt(), "to variance 1"),
    ],
    ids=["norm of the width's root", "norm 1", "variance 1"],
)
@pytest.mark.parametrize(
    ("power", "cause"),
    [(-1, "activations are to be scaled {} first"), (1, "its scale {} is folded in already")],
    ids=["missing", "doubled"],
)
def test_a_missing_and_a_doubled_scale_are_named(
    trained, thresholded, imported, scale_of, words, power, cause
):
    rows = read_tensors(trained / "self_test.safetensors")["inputs"]
    scaled = in_raw_units(thresholded, float(scale_of(rows)) ** power)
    said = imported(scaled, architecture="jumprelu")
    assert "WARNING: " in said and cause.format(words) in said.split("Likely cause:")[1]


def test_nothing_is_said_of_the_same_latents_with_a_threshold(thresholded, imported):
    assert "WARNING" not in imported(thresholded, architecture="jumprelu")


def test_a_scale_that_a_registry_records_and_no_file_is_named(thresholded, imported, monkeypatch):
    def registered(name):
        return Source(Path(name), name, {SCALE: 0.03})

    monkeypatch.setattr(importers, "resolve", registered)
    said = imported(in_raw_units(thresholded, 1 / 0.03), architecture="jumprelu")
    cause = "activations are to be scaled by the constant that is recorded with it first (by 0.03)"
    assert cause in said.split("Likely cause:")[1]


def test_a_scale_of_its_own_files_that_is_folded_in_already_is_named(
    thresholded, imported, tmp_path
):
    (tmp_path / "sae").mkdir()
    scaler = tmp_path / "sae" / "activation_scaler.json"
    write_json(scaler, {"scaling_factor": 0.03, "has_whitening": False})
    out = ("--out", str(tmp_path / "ours"))
    said = imported(thresholded, *out, architecture="jumprelu")
    cause = "its scale by the constant that is recorded with it is folded in already (undoing 0.03)"
    assert cause in said.split("Likely cause:")[1]


def test_another_hook_point_is_named(imported):
    said = imported(None, "--reads", "blocks.0.hook_resid_post")
    assert "WARNING: FVU is" in said
    assert f"Likely cause: it belongs to {HOOK_POINT}, not to the hook point given" in said


@pytest.mark.parametrize(
    ("subtracts", "cause"),
    [
        (True, "b_dec is not to be subtracted from the input"),
        (False, "b_dec is to be subtracted from the input"),
    ],
)
def test_an_input_bias_that_matters_is_named(trained, imported, subtracts, cause):
    """Planted: latents are the entries of x − m and their negatives, and m is large."""
    dictionary, eye = load_dictionary(trained).dictionary, torch.eye(32)
    rows = read_tensors(trained / "self_test.safetensors")["inputs"]
    shift = 3 * rows.std() * torch.randn(32, generator=torch.Generator().manual_seed(0))
    planted = dictionary.tensors() | {
        "W_enc": torch.cat([eye, -eye], 1),
        "W_dec": torch.cat([eye, -eye]),
        "b_dec": shift,
        "b_enc": torch.cat([-shift, shift]) if subtracts else torch.zeros(64),
    }
    settings = {"architecture": "standard", "l0": 32.0}
    assert "WARNING" not in imported(planted, apply_b_dec_to_input=not subtracts, **settings)
    said = imported(planted, apply_b_dec_to_input=subtracts, **settings)
    assert cause in said.split("Likely cause:")[1]
