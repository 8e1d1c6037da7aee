"""The activation cache on real language models: a tiny one, and the embedded one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saelab.cache.cache_stream import CacheStream
from saelab.cache.config import HarvestConfig
from saelab.cache.model_stream import ModelStream
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.errors import ModelError
from saelab.text.contexts import TextConfig
from tests.conftest import context_batches

TINY_HOOKS = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")


@pytest.fixture
def tiny_config(tiny_model, small_text):
    return HarvestConfig(
        model=tiny_model.name,
        hook_points=TINY_HOOKS,
        text=TextConfig(source=str(small_text)),
        context_length=32,
        n_tokens=32 * 24,
        batch_contexts=4,
        model_dtype="float32",
        cache_dtype="float32",
        device="cpu",
        gradients=True,
        contexts_per_shard=8,
    )


def test_a_cache_holds_what_the_model_computes(tiny_model, tiny_config, tmp_path):
    paths = write_caches(tmp_path / "out", tiny_config, model=tiny_model)
    batches = context_batches(
        tiny_config.text, tiny_model, split="train", context_length=32, batch_contexts=4
    )
    tokens = torch.cat([batch for batch, _ in zip(batches, range(6), strict=False)])
    captured = tiny_model.capture_with_gradients(tokens, list(TINY_HOOKS))
    for path in paths:
        cache = open_cache(path)
        read = cache.rows(torch.arange(cache.n_rows), with_context=True)
        where = read.sequence, read.position.long()
        assert torch.equal(read.tokens.long(), tokens[where])
        activations, gradients = captured[path.name]
        torch.testing.assert_close(read.activations, activations[where], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(read.gradients, gradients[where], rtol=1e-4, atol=1e-6)
        assert cache.excluded["bos"] == 24
        special = torch.tensor(sorted(tiny_model.special_ids))
        assert not torch.isin(read.tokens, special).any()


def test_loading_the_model_by_name_gives_the_same_cache(tiny_model, tiny_config, tmp_path):
    given = write_caches(tmp_path / "given", tiny_config, model=tiny_model)
    loaded = write_caches(tmp_path / "loaded", tiny_config)
    for one, other in zip(given, loaded, strict=True):
        assert open_cache(one).content_hash == open_cache(other).content_hash


def test_an_unknown_hook_point_names_the_nearest(tiny_model, tiny_config, tmp_path):
    config = replace(tiny_config, hook_points=("blocks.0.hook_resid_pots",))
    with pytest.raises(ModelError, match=r"blocks\.0\.hook_resid_post"):
        write_caches(tmp_path / "out", config, model=tiny_model)
    assert not (tmp_path / "out").exists()


def test_streams_with_and_without_a_cache_have_the_same_rows(tiny_model, tiny_config, tmp_path):
    config = replace(tiny_config, hook_points=TINY_HOOKS[:1])
    (path,) = write_caches(tmp_path / "out", config, model=tiny_model)
    cached = CacheStream(open_cache(path), 64, seed=0)
    direct = ModelStream(tiny_model, config, 64, seed=0, pool_rows=128)
    assert direct.provenance() == {**cached.provenance(), "cache_hash": None}
    everything = cached.cache.rows(torch.arange(cached.cache.n_rows)).activations
    stored = {tuple(row) for row in everything.tolist()}
    for _ in range(20):
        assert {tuple(row) for row in direct.next_batch().activations.tolist()} <= stored


@pytest.mark.slow
@pytest.mark.model
def test_the_embedded_models_massive_activations_are_excluded(tmp_path):
    config = HarvestConfig(
        context_length=128, n_tokens=128 * 16, batch_contexts=8, contexts_per_shard=8
    )
    (path,) = write_caches(tmp_path / "out", config)
    cache = open_cache(path)
    assert cache.d_in == 576
    assert cache.excluded["bos"] == 16
    assert cache.n_rows + sum(cache.excluded.values()) == 128 * 16
    calibration = cache.manifest["calibration"]
    assert 100 < calibration["median_norm"] < 200
    # Ten times the median let rows through that stand far above the bulk's last.
    assert 2 * calibration["median_norm"] <= cache.norm_ceiling < 3 * calibration["median_norm"]
    norms = cache.rows(torch.arange(cache.n_rows)).activations.norm(dim=1)
    assert norms.max() <= cache.norm_ceiling * 1.01
    statistics = cache.statistics
    assert statistics.centred_mean_squared_norm < statistics.mean_squared_norm
