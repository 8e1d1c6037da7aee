"""Models that bring Python code of their own: it runs when the person at the command says so."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from saelab.cli import main
from saelab.errors import ModelError
from saelab.model.identity import CODE_ALLOWED
from saelab.model.language_model import load_language_model

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).write_text("ran")

class StrangeConfig(LlamaConfig):
    model_type = "strange"

class StrangeModel(LlamaForCausalLM):
    config_class = StrangeConfig
"""
OWN = {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.StrangeModel"}
FLAG = "--trust-remote-code"


@pytest.fixture
def marker(tmp_path):
    """The file that the model's code writes when it runs."""
    return tmp_path / "marker"


@pytest.fixture
def strange(tiny_model_folder, tmp_path, marker, monkeypatch):
    """The tiny Llama with a model type that only its own code knows, and a place for its copies."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    monkeypatch.delenv(CODE_ALLOWED, raising=False)
    folder = shutil.copytree(tiny_model_folder, tmp_path / "strange")
    change(folder, model_type="strange", auto_map=OWN)
    (folder / "strange.py").write_text(CODE.format(marker=str(marker)))
    return folder


def change(folder, name="config.json", **fields):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | fields))


def load(folder):
    return load_language_model(str(folder), dtype="float32", device="cpu")


def test_code_runs_with_the_flag_of_each_command_and_no_artifact_gives_it(
    strange, marker, tiny_model, model_text, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "cache"
    words = f"cache {out} --model {strange} --text.source {model_text.source} --n-tokens 64"
    words = f"{words} --context-length 16 --batch-contexts 4 --model-dtype float32 --device cpu"
    words = f"{words} --hook-points blocks.1.hook_resid_post".split()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert FLAG in said and "read strange.py in" in said and said.count("\n") == 1
    assert not marker.exists()
    assert main([*words, FLAG]) == 0
    assert marker.read_text() == "ran" and CODE_ALLOWED not in os.environ
    manifest = next(out.rglob("manifest.json")).read_text()
    assert "trust" not in manifest
    # The class is known to transformers by now; it is refused all the same.
    assert main([*words, "--overwrite"]) == 2
    monkeypatch.setenv(CODE_ALLOWED, "1")
    model = load(strange)
    tokens = torch.arange(8)[None] + 5
    assert torch.equal(model.run(tokens).logits, tiny_model.run(tokens).logits)
    assert json.loads(manifest)["made_from"]["model_hash"] == model.content_hash
    (strange / "strange.py").write_text((strange / "strange.py").read_text() + "# another\n")
    assert load(strange).content_hash != model.content_hash


def test_a_recipe_gives_no_permission(strange, marker, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"stream: {{model: {strange}, trust_remote_code: true}}\n")
    assert main(["train", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "stream.trust_remote_code" in capsys.readouterr().err and not marker.exists()


@pytest.mark.parametrize("place", ["other/model--strange", "absent", "/etc/strange", "../strange"])
def test_code_that_lies_elsewhere_is_not_run(strange, marker, place, monkeypatch):
    monkeypatch.setenv(CODE_ALLOWED, "1")
    change(strange, auto_map=dict.fromkeys(OWN, f"{place}.StrangeConfig"))
    with pytest.raises(ModelError, match=r"code of its own, .*which is not in"):
        load(strange)
    assert not marker.exists()


@pytest.mark.parametrize("wanted", [{"AutoTokenizer": ["own.Own", None]}, ["own.Own", None], "own"])
def test_code_of_a_tokenizer_is_neither_run_nor_asked_about(strange, marker, wanted):
    change(strange, model_type="llama", auto_map={})
    change(strange, "tokenizer_config.json", tokenizer_class="Own", auto_map=wanted)
    (strange / "own.py").write_text(CODE.format(marker=str(marker)))
    try:
        assert load(strange).tokenizer_size
    except ModelError as error:
        print(error)
    assert not marker.exists()


def test_a_class_that_transformer_lens_does_not_know_is_a_line(strange, monkeypatch):
    monkeypatch.setenv(CODE_ALLOWED, "1")
    change(strange, architectures=["StrangeModel"])
    with pytest.raises(ModelError, match=r"StrangeModel\) is not supported by transformer_lens"):
        load(strange)
