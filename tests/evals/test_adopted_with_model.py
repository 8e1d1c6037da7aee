"""Adopted activations of a language model that saelab loads: `saelab cache adopt --model`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saelab.cache.adopt import adopt_activations
from saelab.cache.config import AdoptConfig
from saelab.cache.reader import open_cache
from saelab.dictionary import load_dictionary
from saelab.errors import SaelabError
from saelab.evals.command import evaluate
from saelab.features.config import FeaturesConfig
from saelab.features.pipeline import build_features
from saelab.features.reader import FeatureStore
from saelab.training.config import TrainConfig
from saelab.training.run import train
from tests.conftest import context_batches

HOOK, LENGTH = "blocks.1.hook_resid_post", 16


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, tiny_model_folder, model_text):
    """Contexts of the tiny model with their tokens, adopted and trained on; the folder of all."""
    folder = tmp_path_factory.mktemp("adopted")
    batches = context_batches(
        model_text, tiny_model, split="train", context_length=LENGTH, batch_contexts=64
    )
    tokens = torch.cat([*batches])
    rows = tiny_model.capture(tokens, [HOOK])[HOOK]
    np.savez(folder / "a.npz", **{HOOK: rows.numpy(), "tokens": tokens.numpy()})
    config = AdoptConfig(model=str(tiny_model_folder))
    adopt_activations([folder / "a.npz"], folder / "cache", config)
    shape = {"d_sae": (48,), "k": (4,), "batch_rows": 64, "n_tokens": 1280}
    train(TrainConfig(cache=folder / "cache", out=folder / "run", **shape))
    return folder, tokens, rows


@pytest.fixture
def dictionary(made):
    return made[0] / "run" / "dictionaries" / "topk-d48-k4-s0"


def test_special_tokens_are_left_out_and_the_model_is_known(made, tiny_model):
    folder, tokens, rows = made
    shares = [open_cache(folder / "cache"), open_cache(folder / "cache" / "held_out")]
    special = torch.tensor(sorted(tiny_model.special_ids))
    counts = ~torch.isin(tokens, special)
    counts[:, 0] = False
    assert sum(cache.n_rows for cache in shares) == int(counts.sum())
    for cache in shares:
        assert cache.manifest["made_from"]["model_hash"] == tiny_model.content_hash
        for batch in cache.iterate(100):
            where = batch.sequence.long(), batch.position.long()
            assert torch.equal(batch.activations, rows[where])
            assert torch.equal(batch.tokens.long(), tokens[where])
            assert counts[where].all()


def test_core_reads_the_adopted_rows_or_the_model_on_text(dictionary, model_text, tmp_path):
    [of_rows] = evaluate("core", dictionary, out=tmp_path / "rows", device="cpu")
    assert any("No language model" in note for note in of_rows.notes)
    given = {"text_source": model_text.source, "device": "cpu", "n_tokens": 512}
    [of_text] = evaluate("core", dictionary, out=tmp_path / "text", **given)
    assert of_text.value("loss_spliced") > 0
    assert of_text.value("n_loss_positions") > 0
    assert of_text.made_from["text"]["source"] == model_text.source


def test_steering_takes_the_text_it_is_given(dictionary, model_text, tmp_path):
    given = {"text_source": model_text.source, "device": "cpu"}
    [result] = evaluate("steering", dictionary, out=tmp_path, n_latents=4, **given)
    assert result.metrics


def test_another_model_is_refused(dictionary, model_text, tiny_gpt2_folder, tmp_path):
    given = {"text_source": model_text.source, "model": str(tiny_gpt2_folder), "device": "cpu"}
    with pytest.raises(SaelabError, match="was trained on"):
        evaluate("core", dictionary, out=tmp_path, **given)


def test_features_show_text_and_logits(made, dictionary, tiny_model):
    folder, tokens, _ = made
    [path] = build_features([dictionary], FeaturesConfig(device="cpu"))
    (rows,) = open_cache(folder / "cache").iterate(1 << 20)
    codes = load_dictionary(dictionary).dictionary.encode(rows.activations).to_dense()
    with FeatureStore(path) as store:
        records = [store.feature(feature) for feature in range(store.n_features)]
        pieces = store.context_pieces(0).texts
    assert [record.n_active for record in records] == (codes > 0).sum(0).tolist()
    assert all(record.logit_lens is not None for record in records)
    spelled = [piece.decode(errors="replace") for piece in tiny_model.token_bytes()]
    first = tokens[int(rows.sequence[0])].tolist()
    assert pieces[0] == "[left out]"
    for piece, token in zip(pieces[1:], first[1:], strict=True):
        assert piece in ("[left out]", spelled[token])


def test_features_of_text_that_is_named(dictionary, model_text, tmp_path):
    config = FeaturesConfig(device="cpu", n_tokens=256, text_source=model_text.source)
    [path] = build_features([dictionary], replace(config, split="held_out"))
    with FeatureStore(path) as store:
        assert store.manifest["made_from"]["text"]["source"] == model_text.source
        assert store.context_pieces(0).texts[0] == "<|bos|>"
