"""What the text leaves out reaches a cache: padding, other roles, and the counts of the reading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saelab.cache.config import HarvestConfig
from saelab.cache.format import content_hash
from saelab.cache.model_stream import ModelStream
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.commands.info import describe
from saelab.errors import ConfigError, TextError
from saelab.formats.manifest import write_manifest
from saelab.text.contexts import TextConfig, is_held_out, read_documents

HOOKS = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
LENGTH = 16
WORDS = ["the", "king", "met", "queen", "at", "old", "mill", "near", "wide", "river", "corn"]


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Texts of many lengths, some longer than a context."""
    path = tmp_path_factory.mktemp("documents") / "x.jsonl"
    texts = [" ".join(WORDS[i % 5 : i % 5 + 1 + i % 9]) + f" {i}" for i in range(16)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TextConfig(source=str(path), one_document_per_context=True)


def harvest_config(model, text, **changes) -> HarvestConfig:
    settings = {
        "model": model.name,
        "hook_points": HOOKS,
        "text": text,
        "context_length": LENGTH,
        "n_tokens": None,
        "batch_contexts": 4,
        "model_dtype": "float32",
        "cache_dtype": "float32",
        "device": "cpu",
        "gradients": True,
        "contexts_per_shard": 8,
    }
    return HarvestConfig(**settings | changes)


def single_passes(model, text):
    """Every context of the training part by itself, without padding: tokens, rows, gradients."""
    for document in read_documents(text):
        if is_held_out(text, document.text):
            continue
        (ids,) = model.tokenize([document.text])
        for start in range(0, len(ids), LENGTH - 1):
            tokens = torch.tensor([[model.bos_id, *ids[start : start + LENGTH - 1]]])
            yield tokens[0], model.capture_with_gradients(tokens, HOOKS)


def test_padded_contexts_hold_what_single_passes_give(tiny_model, documents, tmp_path):
    paths = write_caches(tmp_path / "out", harvest_config(tiny_model, documents), model=tiny_model)
    expected = list(single_passes(tiny_model, documents))
    assert len({len(tokens) for tokens, _ in expected}) > 5
    for path in paths:
        cache = open_cache(path)
        read = cache.rows(torch.arange(cache.n_rows), with_context=True)
        tokens = torch.cat([tokens[1:] for tokens, _ in expected])
        activations, gradients = (
            torch.cat([found[path.name][which][0, 1:] for _, found in expected]) for which in (0, 1)
        )
        norms = activations.norm(dim=1)
        kept = norms <= cache.norm_ceiling
        assert torch.equal(read.tokens.long(), tokens[kept])
        torch.testing.assert_close(read.activations, activations[kept], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(read.gradients, gradients[kept], rtol=1e-4, atol=1e-6)
        n_padding = sum(LENGTH - len(tokens) for tokens, _ in expected)
        assert cache.excluded["padding"] == n_padding
        assert cache.excluded["bos"] == len(expected)
        assert cache.n_rows + sum(cache.excluded.values()) == len(expected) * LENGTH


def test_a_stopped_cache_counts_alike(tiny_model, documents, tmp_path, monkeypatch):
    from saelab.cache import writer

    config = harvest_config(tiny_model, documents, gradients=False)
    (whole, _) = write_caches(tmp_path / "whole", config, model=tiny_model)
    fill = writer._require_space_for_shard

    def fail_late(out, config, behind, done):
        if done == 16:
            raise KeyboardInterrupt
        fill(out, config, behind, done)

    monkeypatch.setattr(writer, "_require_space_for_shard", fail_late)
    with pytest.raises(KeyboardInterrupt):
        write_caches(tmp_path / "part", config, model=tiny_model)
    monkeypatch.setattr(writer, "_require_space_for_shard", fill)
    (part, _) = write_caches(tmp_path / "part", config, resume=True, model=tiny_model)
    manifests = [open_cache(path).manifest for path in (whole, part)]
    assert manifests[0]["text_read"] == manifests[1]["text_read"]
    assert open_cache(whole).content_hash == open_cache(part).content_hash
    read = manifests[0]["text_read"][documents.source]
    assert read["documents"] == 16 and read["contexts"] == manifests[0]["n_contexts"]
    assert read["divided"] > 0 and read["other_split"] > 0
    lines = describe(whole)
    assert any("16 documents read" in line and "split over several" in line for line in lines)


def test_the_stream_without_a_cache_leaves_out_the_same(tiny_model, documents):
    config = harvest_config(tiny_model, documents, gradients=False, hook_points=HOOKS[:1])
    stream = ModelStream(tiny_model, config, 16, seed=0, pool_rows=64)
    stream.next_batch()
    assert stream.excluded["padding"] > 0


def test_rows_of_one_role_only(tiny_model, tmp_path, monkeypatch):
    template = "{% for m in messages %}<|eos|>{{ m.role }} {{ m.content }}{% endfor %}"
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", template)
    talk = [
        {"role": role, "content": " ".join(WORDS[i : i + 4])}
        for i, role in enumerate(("user", "assistant", "user", "assistant"))
    ]
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join(
            json.dumps({"messages": [*talk, {"role": "user", "content": str(i)}]}) + "\n"
            for i in range(16)
        )
    )
    text = TextConfig(source=str(path), roles=("assistant",), held_out_fraction=0.2)
    config = harvest_config(tiny_model, text, hook_points=HOOKS[:1], gradients=False)
    (folder,) = write_caches(tmp_path / "out", config, model=tiny_model)
    cache = open_cache(folder)
    everything = replace(config, text=replace(text, roles=()))
    (all_roles,) = write_caches(tmp_path / "all", everything, model=tiny_model)
    assert cache.excluded["role"] > 0 and 0 < cache.n_rows < open_cache(all_roles).n_rows
    assert "role" not in open_cache(all_roles).excluded
    read = cache.rows(torch.arange(cache.n_rows), with_context=True)
    said = tiny_model.text_of(read.tokens.tolist())
    assert talk[1]["content"] in said and "user" not in said and "assistant" not in said
    with pytest.raises(Exception, match=r"text\.roles"):
        write_caches(
            tmp_path / "none",
            replace(config, text=replace(text, roles=("narrator",))),
            model=tiny_model,
        )


def test_too_little_held_out_text_is_found_out_before_a_pass(tiny_model, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": f"x{i}"}) + "\n" for i in range(60)))
    text = TextConfig(source=str(path), held_out_fraction=0.05)
    config = harvest_config(tiny_model, text, context_length=64)
    with pytest.raises(TextError, match="less than one context of 64"):
        write_caches(tmp_path / "out", config, model=tiny_model)
    assert not (tmp_path / "out").exists()


def test_a_cache_says_what_was_dropped_and_goes_on_after_relative_paths(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("x", "y"):
        lines = [json.dumps({"text": f"{' '.join(WORDS)} {i}"}) + "\n" for i in range(30)]
        Path(f"{name}.jsonl").write_text("".join(lines))
    Path("model").symlink_to(tiny_model.name)
    text = TextConfig(source="x.jsonl", mixture=(("y.jsonl", 0.3),))
    config = replace(harvest_config(tiny_model, text, gradients=False), model="model")
    assert config.model == str(tmp_path / "model")
    assert [config.text.source, *(name for name, _ in config.text.mixture)] == [
        str(tmp_path / "x.jsonl"),
        str(tmp_path / "y.jsonl"),
    ]
    one = replace(
        config, model=tiny_model.name, text=TextConfig(source="x.jsonl"), hook_points=HOOKS[:1]
    )
    (path,) = write_caches(tmp_path / "out", one, model=tiny_model)
    read = open_cache(path).manifest["text_read"][one.text.source]
    assert 0 < read["dropped"] < LENGTH - 1
    assert any("dropped at the end" in line for line in describe(path))
    # As an earlier version recorded it.
    manifest = open_cache(path).manifest
    manifest["config"]["text"]["source"] = "x.jsonl"
    manifest["content_hash"] = content_hash(manifest)
    write_manifest(path / "manifest.json", manifest)
    assert write_caches(tmp_path / "out", one, model=tiny_model, resume=True) == [path]
    with pytest.raises(ConfigError, match=r"other settings.*text\.source"):
        other = replace(one, text=TextConfig(source="y.jsonl"))
        write_caches(tmp_path / "out", other, model=tiny_model, resume=True)
