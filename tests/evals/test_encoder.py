"""Dictionaries of an encoder (BERT-like), which predicts no next token."""

from __future__ import annotations

import pytest
import torch

from saelab.cache.config import HarvestConfig
from saelab.cache.writer import write_caches
from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.dictionary.site_rows import held_out_rows
from saelab.errors import ModelError
from saelab.evals.command import evaluate
from saelab.evals.core.config import CoreConfig
from saelab.features.config import FeaturesConfig
from saelab.features.pipeline import build_features
from saelab.features.reader import FeatureStore
from saelab.training.config import TrainConfig
from saelab.training.run import train
from tests.conftest import write_tiny_tokenizer


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory, model_text):
    """One of two dictionaries trained on the cache of a tiny random BERT."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    BertForMaskedLM(config).save_pretrained(folder / "bert")
    write_tiny_tokenizer(folder / "bert")
    harvest = HarvestConfig(
        model=str(folder / "bert"),
        hook_points=("blocks.0.hook_resid_post",),
        text=model_text,
        context_length=16,
        n_tokens=1024,
        batch_contexts=4,
        model_dtype="float32",
        device="cpu",
    )
    write_caches(folder / "cache", harvest)
    shape = {"seeds": (0, 1), "d_sae": (48,), "k": (4,), "batch_rows": 64, "n_tokens": 1280}
    train(TrainConfig(cache=folder / "cache", out=folder / "run", **shape))
    return folder / "run" / "dictionaries" / "topk-d48-k4-s0"


def test_core_judges_rows_and_says_why_there_are_no_losses(dictionary):
    [result] = evaluate("core", dictionary, n_tokens=512, device="cpu")
    saved = load_dictionary(dictionary)
    spec = data_spec_of(saved, CoreConfig())
    batches = held_out_rows(spec.load_model("cpu"), spec, 512, 4)
    rows = torch.cat([batch.inputs for batch in batches])
    error = (rows - saved.dictionary(rows)).double().square().sum()
    variance = (rows.double() - rows.double().mean(0)).square().sum()
    assert result.value("n_rows") == len(rows) > 300
    assert result.value("fvu") == pytest.approx(float(error / variance), rel=1e-4)
    assert result.value("l0_mean") == 4
    assert not {"loss_clean", "kl", "loss_recovered_mean"} & {m.name for m in result.metrics}
    assert any("predicted" in note and "encoder" in note for note in result.notes)


def test_features_are_read_without_logits(dictionary):
    [path] = build_features([dictionary], FeaturesConfig(n_tokens=512, device="cpu"))
    with FeatureStore(path) as store:
        records = [store.feature(feature) for feature in range(store.n_features)]
    assert all(record.logit_lens is None for record in records)
    assert sum(record.n_active for record in records) > 0


def test_consistency_needs_no_next_token(dictionary):
    results = evaluate("consistency", sorted(dictionary.parent.iterdir()), device="cpu")
    assert len(results) == 2


@pytest.mark.parametrize("suite", ["steering", "dark-matter"])
def test_what_needs_a_next_token_says_so(dictionary, suite):
    with pytest.raises(ModelError, match="need a model that predicts the next token"):
        evaluate(suite, [dictionary], device="cpu")
