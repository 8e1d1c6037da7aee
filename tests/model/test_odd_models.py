"""Models whose modules are laid out in another way, that bring code of their own or are hostile."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from saelab.errors import ModelError
from saelab.model.language_model import load_language_model
from saelab.model.model_files import resolve_model


@pytest.fixture(scope="module")
def opt(tmp_path_factory, tiny_model_folder):
    """A random OPT, whose MLP reads all positions as one axis."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=300,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        init_std=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return saved(OPTForCausalLM(config), tmp_path_factory.mktemp("opt"), tiny_model_folder)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory, tiny_model_folder):
    """A random mixture of experts."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
    )
    return saved(MixtralForCausalLM(config), tmp_path_factory.mktemp("mixtral"), tiny_model_folder)


def saved(model, folder, tokenizer_of):
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_of / name, folder / name)
    return folder


def test_the_mlp_of_opt_gives_the_rows_that_its_layers_have(opt):
    from transformers import OPTForCausalLM

    tokens = torch.arange(24).reshape(2, 12)
    layer = (plain := OPTForCausalLM.from_pretrained(opt)).model.decoder.layers[1]
    seen = {}
    layer.fc1.register_forward_hook(lambda _, x, y: seen.update(hook_pre=y))
    layer.fc2.register_forward_hook(lambda _, x, y: seen.update(hook_post=x[0], hook_out=y))
    with torch.no_grad():
        plain(tokens)
    model = load_language_model(str(opt), dtype="float32", device="cpu")
    listed = model.hook_points()
    for name, rows in seen.items():
        hook_point = "blocks.1.hook_mlp_out" if name == "hook_out" else f"blocks.1.mlp.{name}"
        assert hook_point in listed
        captured = model.capture(tokens, [hook_point])[hook_point]
        torch.testing.assert_close(captured.flatten(0, 1), rows, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match=r"gradient at blocks\.1\.mlp\.hook_post cannot be had"):
        model.capture_with_gradients(tokens, ["blocks.1.mlp.hook_post"])


def test_the_output_of_experts_is_not_called_neurons(mixtral):
    model = load_language_model(str(mixtral), dtype="float32", device="cpu")
    of_mlp = [name for name in model.hook_points() if ".mlp." in name]
    assert of_mlp == ["blocks.0.mlp.hook_in", "blocks.0.mlp.hook_out"]
    with pytest.raises(ModelError, match=r"no hook point 'blocks\.0\.mlp\.hook_post'"):
        model.width_at("blocks.0.mlp.hook_post")


@pytest.fixture
def copied(tiny_model_folder, tmp_path):
    """A copy of the tiny Llama, and a way to change one of its JSON files."""
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")

    def change(name, **fields):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | fields))
        return folder

    return change


def test_code_that_a_model_brings_is_neither_run_nor_asked_about(copied, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder = copied("config.json", model_type="strange", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match=r"code of its own.*trust_remote_code.*does not support"):
        load_language_model(str(folder), dtype="float32", device="cpu")


def test_a_panic_of_the_tokenizer_is_an_error_in_words(copied):
    broken = {"type": "Precompiled", "precompiled_charsmap": "AAAA/////w=="}
    folder = copied("tokenizer.json", normalizer=broken)
    with pytest.raises(ModelError, match="a library failed inside: Precompiled"):
        load_language_model(str(folder), dtype="float32", device="cpu")


def test_more_layers_than_weights_are_refused_before_they_are_made(copied):
    folder = copied("config.json", num_hidden_layers=10**9)
    with pytest.raises(ModelError, match=r"names 1,000,000,000 layers and the weights have \d+ "):
        load_language_model(str(folder), dtype="float32", device="cpu")


def test_infinity_in_the_settings_is_a_line(copied):
    folder = copied("config.json", rope_theta=float("inf"))
    with pytest.raises(ModelError, match=r"config\.json holds NaN or infinity"):
        resolve_model(str(folder)).content_hash()


def test_a_pipe_among_a_models_files_is_not_opened(copied):
    folder = copied("config.json")
    os.mkfifo(folder / "vocab.json")
    with pytest.raises(ModelError, match=r"vocab\.json is a pipe or a device"):
        load_language_model(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a": ' + b"9" * 5_000 + b"}", b"\xff\xfe", b"null", b"[]", b""]
)
def test_a_hostile_file_of_a_model_is_refused(name, content, copied):
    folder = copied("config.json")
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_language_model(str(folder), dtype="float32", device="cpu")
    assert len(str(caught.value)) < 700


def test_a_context_too_long_is_refused_before_the_weights_are_read(
    tiny_model_folder, tmp_path, monkeypatch
):
    from saelab.cache import writer
    from saelab.cache.config import HarvestConfig
    from saelab.errors import ConfigError

    monkeypatch.setattr(writer, "load_language_model", lambda *_, **__: pytest.fail("loaded"))
    config = HarvestConfig(
        model=str(tiny_model_folder),
        hook_points=("blocks.1.hook_resid_post",),
        context_length=129,
        n_tokens=None,
    )
    with pytest.raises(ConfigError, match="context_length: 129 is longer than the 128 tokens"):
        writer.write_caches(tmp_path / "out", config)


def test_local_names_are_recorded_as_absolute_paths(tiny_model_folder, tmp_path, monkeypatch):
    from saelab.cache.config import HarvestConfig
    from saelab.text.config import TextConfig

    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "sotu").mkdir()
    (tmp_path / "text.txt").write_text("some text")
    shutil.copytree(tiny_model_folder, tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    config = HarvestConfig(model="models/mine", text=TextConfig(source="text.txt"))
    assert config.model == str(tmp_path / "models" / "mine")
    assert config.text.source == str(tmp_path / "text.txt")
    model = load_language_model("models/mine", dtype="float32", device="cpu")
    assert model.name == config.model
    monkeypatch.chdir("/")
    assert HarvestConfig(model=config.model, text=config.text) == config
    monkeypatch.chdir(tmp_path)
    named = HarvestConfig(model="owner/model", text=TextConfig(source="owner/dataset"))
    assert (named.model, named.text.source) == ("owner/model", "owner/dataset")
    assert (HarvestConfig().model, HarvestConfig().text.source) == ("smollm2-135m", "sotu")
    with pytest.raises(ModelError, match="if it was moved, give its place with --model"):
        load_language_model(str(tmp_path / "models" / "gone"))
