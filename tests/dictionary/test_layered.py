"""Dictionaries over several layers, opened a layer at a time: the same as whole, file by file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelab.cli import main
from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.dictionary.importers import cross_layer, read_foreign, resolve
from saelab.dictionary.importers.foreign import Foreign
from saelab.dictionary.layered import LayeredDictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.evaluation_result import read_evaluation_result

FIXTURES = Path(__file__).parent / "importers" / "fixtures"
CASES = [
    "circuit-tracer-clt-jumprelu",
    "circuit-tracer-clt-relu-skip",
    "gemma-scope-2-clt",
    "gemma-scope-2-crosscoder",
    "llamascopium-clt-jumprelu",
    "llamascopium-clt-layertopk",
    "llamascopium-clt-relu",
]


def source_of(case: str) -> Path:
    folder = FIXTURES / case
    named = next(folder.rglob("source"), None)
    inside = [path for path in folder.iterdir() if path.is_dir()]
    return named or (inside[0] if len(inside) == 1 else folder)


def opened(case: str) -> Foreign:
    (foreign,) = read_foreign(resolve(str(source_of(case))))
    return foreign


@pytest.fixture
def nothing_fits(monkeypatch):
    monkeypatch.setattr(cross_layer, "DENSE_LIMIT", 0)


def kept(case: str, folder: Path) -> LayeredDictionary:
    foreign = opened(case)
    x = load_file(FIXTURES / case / "expected.safetensors")["x"]
    made_from = {"model": "m", "text": {}, "context_length": 8, "row_rule": {}}
    save_dictionary(
        folder,
        foreign.dictionary,
        self_test_inputs=x,
        training={"method": "m"},
        made_from=made_from,
        site=foreign.site,
    )
    dictionary = load_dictionary(folder).dictionary
    assert isinstance(dictionary, LayeredDictionary)
    return dictionary


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_layer_by_layer_it_computes_what_the_whole_does(case, nothing_fits, tmp_path, monkeypatch):
    expected = load_file(FIXTURES / case / "expected.safetensors")
    x, layered = expected["x"], opened(case).dictionary
    assert isinstance(layered, LayeredDictionary)
    monkeypatch.setattr(cross_layer, "DENSE_LIMIT", 1e9)
    whole = opened(case).dictionary
    assert type(whole) is Dictionary
    monkeypatch.setattr(cross_layer, "DENSE_LIMIT", 0)
    for dictionary in (layered, kept(case, tmp_path)):
        codes = dictionary.encode(x)
        assert largest_difference(codes.to_dense(), expected["codes"]) < 1e-6
        assert largest_difference(dictionary.decode(codes), expected["reconstruction"]) < 1e-6
        assert torch.equal(codes.to_dense() > 0, whole.encode_dense(x) > 0)
        assert largest_difference(dictionary(x), whole(x)) < 1e-6
        dense = dictionary.decode(codes.to_dense(), row_offset=dictionary.row_offset(x))
        assert largest_difference(dense, whole(x)) < 1e-6
        assert largest_difference(dictionary.baseline(x), whole.baseline(x)) < 1e-6
        some = torch.tensor([1, dictionary.d_sae - 1, dictionary.d_sae // 2])
        assert torch.equal(dictionary.decoder_rows(some), whole.W_dec[some])


def test_each_layer_has_a_file_that_is_checked(nothing_fits, tmp_path):
    """A changed layer is told by its hash, and by its codes where the manifest has its new hash."""
    from saelab.dictionary.storage import content_hash_of
    from saelab.formats.files import sha256_of
    from saelab.formats.manifest import seal

    def seal_again() -> None:
        manifest["content_hash"] = content_hash_of(manifest)
        (folder / "saelab.json").write_text(json.dumps(seal(manifest)))

    folder = tmp_path / "clt"
    kept("circuit-tracer-clt-jumprelu", folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "cfg.json",
        *(f"layer_{index}.safetensors" for index in range(3)),
        "saelab.json",
        "self_test.safetensors",
    ]
    path = folder / "layer_1.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"W_dec": tensors["W_dec"] * 1.01}, path)
    with pytest.raises(ArtifactError, match=r"layer_1\.safetensors is not the file"):
        load_dictionary(folder)
    manifest = json.loads((folder / "saelab.json").read_text())
    manifest["files"][path.name] = sha256_of(path)
    seal_again()
    with pytest.raises(ArtifactError, match="fails its self-test: reconstructions"):
        load_dictionary(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"layer_1\.safetensors is missing"):
        load_dictionary(folder)
    del manifest["files"][path.name]
    seal_again()
    with pytest.raises(ArtifactError, match="does not list the files it vouches for"):
        load_dictionary(folder)


def test_what_needs_whole_matrices_is_refused_in_one_line(nothing_fits, tmp_path, capsys):
    dictionary = kept("gemma-scope-2-clt", tmp_path / "clt")
    for name in ("W_enc", "W_dec", "b_enc", "threshold"):
        with pytest.raises(ConfigError, match="a layer at a time"):
            getattr(dictionary, name)
    with pytest.raises(ConfigError, match="a layer at a time"):
        dictionary.tensors()
    assert main(["info", str(tmp_path / "clt")]) == 0
    assert "jumprelu, d_in 96, d_sae 144" in capsys.readouterr().out
    for words in (["export", "--to", "saelens", "--out", str(tmp_path / "out")], ["compare"]):
        command, *options = words
        assert main([command, str(tmp_path / "clt"), *options]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_it_is_imported_and_judged_like_the_whole(
    tiny_model_folder, model_text, monkeypatch, tmp_path, capsys
):
    source = tmp_path / "source"
    shutil.copytree(source_of("gemma-scope-2-clt"), source)
    reads = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]
    writes = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]
    words = ["import", str(source), "--model", str(tiny_model_folder), "--device", "cpu"]
    words += ["--reads", *reads, "--writes", *writes, "--text-source", model_text.source]
    words += ["--held-out-fraction", "0.5", "--context-length", "32", "--n-tokens", "640"]
    numbers = ["--n-tokens", "320", "--n-loss-tokens", "64", "--device", "cpu"]
    measured, values = [], []
    for name, limit in (("whole", 1e9), ("layered", 0)):
        monkeypatch.setattr(cross_layer, "DENSE_LIMIT", limit)
        folder = tmp_path / name
        assert main([*words, "--out", str(folder)]) == 0
        saved = load_dictionary(folder)
        assert isinstance(saved.dictionary, LayeredDictionary) == (name == "layered")
        measured.append(saved.made_from["imported"]["measured"])
        assert main(["eval", "core", str(folder), *numbers]) == 0
        result = read_evaluation_result(folder / "evals" / "core.json")
        values.append({metric.name: metric.value for metric in result.metrics})
    assert measured[1] == pytest.approx(measured[0], rel=1e-6)
    assert values[1] == pytest.approx(values[0], rel=1e-4, abs=1e-6)
    assert measured[0]["l0"] > 1 and values[0]["fvu"] > 0
    capsys.readouterr()
    assert main(["features", str(tmp_path / "layered"), *numbers[:2], "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "a layer at a time" in line
    assert not (tmp_path / "layered" / "features.sqlite").exists()


def test_saved_over_one_of_another_kind_no_weights_of_that_are_left(nothing_fits, tmp_path):
    def whole() -> set[str]:
        matrices = {"W_enc": torch.eye(3), "W_dec": torch.eye(3)}
        biases = {"b_enc": torch.zeros(3), "b_dec": torch.zeros(3)}
        made_from = {"model": "m", "hook_point": "blocks.0.hook_resid_post"}
        save_dictionary(
            tmp_path,
            Dictionary("relu", **matrices, **biases),
            self_test_inputs=torch.ones(2, 3),
            training={"method": "m"},
            made_from=made_from,
        )
        return {path.name for path in tmp_path.glob("*.safetensors")}

    alone = whole()
    kept("circuit-tracer-clt-jumprelu", tmp_path)
    assert not (tmp_path / "sae_weights.safetensors").exists()
    assert whole() == alone
