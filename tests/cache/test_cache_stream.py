from __future__ import annotations

import pytest
import torch

from saelab.activation_cache import CacheStream
from saelab.errors import ActivationError


@pytest.fixture
def cache(make_cache):
    return make_cache(gradients=True)


def rows_of(batch):
    return [tuple(row) for row in batch.activations.tolist()]


def test_every_row_comes_once_per_epoch(cache):
    stream = CacheStream(cache, batch_rows=64, seed=0)
    everything = sorted(rows_of(cache.rows(torch.arange(cache.n_rows))))
    drawn = []
    while len(drawn) < 3 * cache.n_rows:
        batch = stream.next_batch()
        assert batch.activations.shape == (64, cache.d_in)
        drawn += rows_of(batch)
    epochs = [drawn[i * cache.n_rows : (i + 1) * cache.n_rows] for i in range(3)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_gradients_stay_with_their_rows(cache):
    batch = CacheStream(cache, batch_rows=64, seed=0).next_batch()
    assert torch.equal(batch.gradients, (batch.activations.bfloat16() * 0.5).float())


def test_seeds_give_different_orders_and_equal_ones_the_same(cache):
    batches = [CacheStream(cache, 64, seed).next_batch().activations for seed in (0, 0, 1)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("steps", [0, 1, 5, 30])
def test_a_restored_stream_goes_on_exactly(cache, steps):
    stream = CacheStream(cache, batch_rows=100, seed=3)
    for _ in range(steps):
        stream.next_batch()
    state = stream.state()
    following = [stream.next_batch().activations for _ in range(20)]
    fresh = CacheStream(cache, batch_rows=100, seed=99)
    fresh.restore(state)
    assert all(torch.equal(fresh.next_batch().activations, rows) for rows in following)
    assert fresh.state() == stream.state()


def test_a_batch_may_be_larger_than_the_cache(cache):
    stream = CacheStream(cache, batch_rows=2 * cache.n_rows + 3, seed=0)
    assert len(stream.next_batch().activations) == 2 * cache.n_rows + 3
    assert stream.state()["epoch"] == 2 and stream.state()["position"] == 3


def test_a_position_in_another_cache_is_refused(cache, make_cache):
    other = CacheStream(make_cache("other", n_tokens=160), 8, 0)
    stream = CacheStream(cache, 8, 0)
    with pytest.raises(ActivationError, match="resume with the cache"):
        stream.restore(other.state())


def test_statistics_and_provenance_are_the_caches(cache):
    stream = CacheStream(cache, 8, 0)
    assert stream.d_in == cache.d_in
    assert torch.equal(stream.statistics.mean, cache.mean)
    assert stream.statistics.centred_mean_squared_norm == cache.centred_mean_squared_norm
    assert stream.statistics.norm_ceiling == cache.norm_ceiling
    assert stream.provenance()["cache_hash"] == cache.content_hash
