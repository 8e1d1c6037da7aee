"""What transformers is given for loading a model, and revisions on the hub."""

import json
import shutil

import pytest
import torch

from saelab.cache.config import DataOverrides, HarvestConfig
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.errors import ConfigError, ModelError
from saelab.model import hugging_face
from saelab.model.hugging_face import model_options
from saelab.model.language_model import load_language_model
from saelab.model.model_files import resolve_model

HOOK_POINT = "blocks.1.hook_resid_post"
GIVEN = ("attn_implementation=eager", '{"device_map": {"": "cpu"}}')


def test_words_become_options():
    words = ("attn_implementation=eager", "device_map=auto", "a=1", "b=true", '{"c": [1], "a": 2}')
    expected = {"attn_implementation": "eager", "device_map": "auto", "a": 2, "b": True, "c": [1]}
    assert model_options(words) == expected and model_options(()) == {}


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("eager", "'eager' is neither name=value nor a JSON object"),
        ("=eager", "neither name=value"),
        ('{"a": ', r"is not valid JSON"),
        ("dtype=float16", "dtype is not given here: give --model-dtype"),
        ("revision=main", r"as in owner/model@revision"),
        ("trust_remote_code=true", "give --trust-remote-code with the command, which no file can"),
        ("allow_all_kernels=true", "runs no code that is fetched"),
        (
            "load_in_8bit=true",
            "load_in_8bit needs the package bitsandbytes, which is not installed",
        ),
        ("load_in_4bit=true", "needs the package bitsandbytes"),
        ("device_map=auto", "device_map needs the package accelerate"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_line(monkeypatch, word, reason):
    monkeypatch.setattr(hugging_face, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=reason) as caught:
        model_options((word,))
    assert "\n" not in str(caught.value)


def test_options_reach_transformers_and_an_unknown_one_is_named(tiny_model_folder, tiny_model):
    name = str(tiny_model_folder)
    tokens = torch.arange(8)[None] + 5
    model = load_language_model(name, dtype="float32", device="cpu", model_kwargs=GIVEN)
    assert model._forward.plain.config._attn_implementation == "eager"
    rows, expected = (m.capture(tokens, [HOOK_POINT])[HOOK_POINT] for m in (model, tiny_model))
    torch.testing.assert_close(rows, expected)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_language_model(name, dtype="float32", device="cpu", model_kwargs=("no_such=1",))
    assert "no_such" in str(caught.value)


def test_a_device_map_with_a_block_on_disk_gives_the_same_rows(
    tiny_model_folder, tiny_model, tmp_path
):
    places = dict.fromkeys(("embed_tokens", "layers.0", "layers.2", "norm", "rotary_emb"), "cpu")
    places = {f"model.{name}": place for name, place in places.items()}
    places |= {"model.layers.1": "disk", "lm_head": "cpu"}
    options = {"device_map": places, "offload_folder": str(tmp_path)}
    model = load_language_model(
        str(tiny_model_folder), dtype="float32", model_kwargs=(json.dumps(options),)
    )
    tokens = torch.arange(8)[None] + 5
    for name in (HOOK_POINT, "blocks.1.attn.hook_z", "blocks.2.hook_mlp_out"):
        rows, expected = (m.capture(tokens, [name])[name] for m in (model, tiny_model))
        assert torch.equal(rows, expected)
    assert torch.equal(model.run(tokens).logits, tiny_model.run(tokens).logits)


def test_options_are_recorded_from_the_cache_to_the_data_spec(
    tiny_model_folder, model_text, tmp_path
):
    config = {
        "model": str(tiny_model_folder),
        "hook_points": (HOOK_POINT,),
        "text": model_text,
        "context_length": 16,
        "n_tokens": 128,
        "batch_contexts": 4,
        "model_dtype": "float32",
        "device": "cpu",
    }
    without = HarvestConfig(**config)
    assert "model_kwargs" not in without.to_json()
    cache = open_cache(write_caches(tmp_path / "c", HarvestConfig(**config, model_kwargs=GIVEN))[0])
    assert cache.provenance()["model_kwargs"] == list(GIVEN)
    with pytest.raises(ConfigError, match="model_kwargs"):
        write_caches(tmp_path / "c", without, resume=True)
    dictionary = Dictionary(
        "topk",
        W_enc=torch.eye(32),
        W_dec=torch.eye(32),
        b_enc=torch.zeros(32),
        b_dec=torch.zeros(32),
        k=2,
    )
    rows = cache.rows(torch.arange(16)).activations
    origin = cache.provenance()
    save_dictionary(
        tmp_path / "d", dictionary, self_test_inputs=rows, training={}, made_from=origin
    )
    saved = load_dictionary(tmp_path / "d")
    spec = data_spec_of(saved, DataOverrides())
    assert spec.model_kwargs == GIVEN
    assert spec.load_model("cpu")._forward.plain.config._attn_implementation == "eager"
    assert data_spec_of(saved, DataOverrides(model_kwargs=())).model_kwargs == ()


def test_a_revision_is_found_in_the_hub_cache_and_a_missing_one_named(
    tiny_model_folder, tmp_path, monkeypatch
):
    repository = tmp_path / "models--owner--tiny"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        shutil.copytree(tiny_model_folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, commit in (("", "a"), ("@main", "a"), ("@v2", "b"), (f"@{'b' * 40}", "b")):
        assert resolve_model(f"owner/tiny{name}").folder.name == commit * 40
    with pytest.raises(ModelError, match="model 'owner/tiny@v3' is neither a local folder nor"):
        resolve_model("owner/tiny@v3")
