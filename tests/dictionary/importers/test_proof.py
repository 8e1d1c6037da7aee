"""Damage of the kinds that importing makes, on a dictionary that was trained: each is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelab.cache.config import HarvestConfig
from saelab.cache.writer import write_caches
from saelab.cli import main
from saelab.dictionary import load_dictionary
from saelab.dictionary.importers.foreign import in_raw_units
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


@pytest.mark.parametrize(
    ("norm", "power", "cause"),
    [
        (32**0.5, -1, "are to be scaled to norm √d_in first"),
        (32**0.5, 1, "is folded in already"),
        (1.0, -1, "are to be scaled to norm 1 first"),
        (1.0, 1, "its scale to norm 1 is folded in already"),
    ],
)
def test_a_missing_and_a_doubled_scale_are_named(trained, imported, norm, power, cause):
    """Of the same latents with a threshold, since TopK finds them at any scale."""
    dictionary = load_dictionary(trained).dictionary
    rows = read_tensors(trained / "self_test.safetensors")["inputs"]
    heights = (rows - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc
    threshold = torch.full_like(dictionary.b_enc, float(heights.quantile(1 - 8 / 64)))
    right = dictionary.tensors() | {"threshold": threshold}
    assert "WARNING" not in imported(right, architecture="jumprelu")
    scale = norm / float(rows.norm(dim=1).mean())
    said = imported(in_raw_units(right, scale**power), architecture="jumprelu")
    assert "WARNING: " in said and cause in said.split("Likely cause:")[1]


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
