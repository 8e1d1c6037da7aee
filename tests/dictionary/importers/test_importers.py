"""Every format against its own library: fixtures that it wrote, with its codes of the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saelab.cli import main
from saelab.dictionary import load_dictionary
from saelab.dictionary.importers import FORMATS, read_foreign, recognise, resolve
from saelab.errors import ArtifactError
from saelab.formats.files import read_tensors

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(path.name for path in FIXTURES.iterdir())


def format_of(case: str) -> str:
    return max((name for name in FORMATS if case.startswith(name)), key=len)


def expected_of(case: str) -> dict[str, torch.Tensor]:
    (path,) = (FIXTURES / case).rglob("expected.safetensors")
    return read_tensors(path)


@pytest.mark.parametrize("case", CASES)
def test_codes_and_reconstruction_are_the_librarys(case, source_of):
    source, expected = source_of(case), expected_of(case)
    claimed = [name for name, known in FORMATS.items() if known.matches(source.path)]
    assert claimed == [recognise(source)] == [format_of(case)]
    (foreign,) = read_foreign(source)
    x, dictionary = expected["x"], foreign.dictionary
    for name, ours in {
        "codes": dictionary.encode_dense(x),
        "reconstruction": dictionary(x),
    }.items():
        largest = expected[name].abs().max().clamp_min(1e-30)
        off = float((ours - expected[name]).abs().max() / largest)
        assert off <= 1e-6, f"{name} of {case} differ by {off:.1e} of the largest entry"
    assert (expected["codes"] != 0).any() and (expected["codes"] == 0).any()
    assert foreign.conventions and foreign.files


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_fixture(name):
    assert any(format_of(case) == name for case in CASES)


def test_an_unknown_source_is_a_question(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ArtifactError, match="say which with --format"):
        recognise(resolve(str(tmp_path)))
    with pytest.raises(ArtifactError, match="does not exist"):
        resolve(str(tmp_path / "nowhere"))


def import_options(text: Path) -> list[str]:
    options = ["--text-source", str(text), "--held-out-fraction", "0.5"]
    return [*options, "--context-length", "32", "--n-tokens", "640", "--device", "cpu"]


def test_an_imported_folder_is_judged_like_our_own(
    copied, model_text, tiny_model_folder, capsys, tmp_path
):
    folder = copied("saelens-standard")
    weights = (folder / "sae_weights.safetensors").read_bytes()
    options = import_options(Path(model_text.source))
    assert main(["import", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "--text-source" in error and "--context-length" not in error
    assert main(["import", str(folder), "--model", str(tiny_model_folder), *options]) == 0
    said = capsys.readouterr().out
    assert "WARNING: FVU is" in said and f"imported: {folder}" in said
    assert (folder / "sae_weights.safetensors").read_bytes() == weights
    saved = load_dictionary(folder)
    record = saved.made_from["imported"]
    assert record["format"] == "saelens" and record["measured"]["n_rows"] > 100
    assert saved.norm_ceiling is not None and saved.norm_ceiling > 0
    numbers = ["--n-tokens", "320", "--n-loss-tokens", "64", "--device", "cpu"]
    assert main(["eval", "core", str(folder), *numbers]) == 0
    assert main(["features", str(folder), "--n-tokens", "320", "--device", "cpu"]) == 0
    assert main(["info", str(folder)]) == 0
    words = ["import", str(folder), "--model", str(tiny_model_folder), *options]
    assert main(words) == 0 and "kept:" in capsys.readouterr().out
    assert main([*words, "--n-tokens", "320"]) == 2
    assert "imported with other settings" in capsys.readouterr().err


def test_the_likely_cause_of_a_bad_reconstruction_is_named(
    tmp_path, tiny_model_folder, model_text, capsys
):
    """A dictionary of one hook point given for another is found out, and the right one named."""
    from safetensors.torch import save_file

    from saelab.formats.files import write_json

    eye = torch.eye(32)
    tensors = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye])}
    scale = 0.02
    tensors["W_enc"], tensors["W_dec"] = tensors["W_enc"] * scale, tensors["W_dec"] * 3.0
    tensors |= {"b_enc": torch.zeros(64), "b_dec": torch.zeros(32)}
    folder = tmp_path / "sae"
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "sae_weights.safetensors",
    )
    config = {"architecture": "standard", "d_in": 32, "d_sae": 64, "dtype": "float32"}
    metadata = {"sae_lens_version": "6.0.0", "hook_name": "blocks.1.hook_resid_post"}
    write_json(
        folder / "cfg.json", {**config, "metadata": metadata, "normalize_activations": "none"}
    )
    options = import_options(Path(model_text.source))
    assert main(["import", str(folder), "--model", str(tiny_model_folder), *options]) == 0
    assert "WARNING: FVU is" in capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_info_of_a_foreign_source_names_its_format_and_the_command(case, source_of, capsys):
    path = source_of(case).path
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"dictionary of another library: {FORMATS[format_of(case)].title}\n" in said
    assert f"`saelab import {path}`" in said


def test_info_of_what_nobody_knows_is_still_an_error(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing")
    for path, words in (
        (tmp_path, "holds no saelab artifact"),
        (tmp_path / "notes.txt", "is not a file of saelab"),
    ):
        assert main(["info", str(path)]) == 2
        assert words in capsys.readouterr().err


def test_info_of_an_imported_dictionary_says_how_it_was_read_and_what_was_measured(
    copied, tiny_model_folder, capsys
):
    folder = copied("qwen-scope")
    out, text = folder.parent / "ours", folder.parent / "text.txt"
    document = "the king met the queen at the old mill near the river " * 12
    text.write_text("\n<|endoftext|>\n".join(f"{number} {document}" for number in range(12)))
    given = ["import", str(folder), "--model", str(tiny_model_folder), "--out", str(out)]
    given += ["--reads", "blocks.1.hook_resid_post", *import_options(text)]
    assert main(given) == 0
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = load_dictionary(out).made_from["imported"]
    for name, words in record["conventions"].items():
        assert f"imported, {name}: {words}" in lines
    assert f"imported, from: {folder}" in lines and "imported, format: qwen-scope" in lines
    assert f"imported, l0: {record['measured']['l0']:.4g} (reported: 5)" in lines
    assert record["disagreements"]
    for sentence in record["disagreements"]:
        assert f"WARNING: {sentence}" in lines
    assert any(line.startswith(("Likely cause: ", "None of the usual")) for line in lines)
    assert main([*given, "--unproved", "--overwrite"]) == 0
    assert main(["info", str(out)]) == 0
    assert "WARNING: not proved: nothing was measured" in capsys.readouterr().out
