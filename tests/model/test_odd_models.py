"""Models whose modules are laid out in another way, or that are hostile."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from saelab.errors import ModelError
from saelab.model.language_model import load_language_model
from saelab.model.model_files import resolve_model


@pytest.fixture
def copied(tiny_model_folder, tmp_path):
    """A copy of the tiny Llama, and a way to change one of its JSON files."""
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")

    def change(name, **fields):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | fields))
        return folder

    return change


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
    from saelab.cache import harvest, writer
    from saelab.cache.config import HarvestConfig
    from saelab.errors import ConfigError

    monkeypatch.setattr(harvest, "load_language_model", lambda *_, **__: pytest.fail("loaded"))
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
