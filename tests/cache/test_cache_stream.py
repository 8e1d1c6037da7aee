from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from saelab.cache.cache_stream import CacheStream
from saelab.cache.permutation import Permutation
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
    batch = CacheStream(cache, batch_rows=64, seed=0, with_gradients=True).next_batch()
    assert torch.equal(batch.gradients, (batch.activations.bfloat16() * 0.5).float())


def test_gradients_are_read_only_where_asked_for(cache, make_cache, monkeypatch):
    without = make_cache("without")
    read = []
    gather = type(cache)._gather_finite
    monkeypatch.setattr(
        type(cache), "_gather_finite", lambda *given: read.append(given[2]) or gather(*given)
    )
    assert CacheStream(cache, batch_rows=8, seed=0).next_batch().gradients is None
    assert cache.rows(torch.arange(3), with_gradients=False).gradients is None
    assert read == ["activations", "activations"]
    assert cache.rows(torch.arange(3)).gradients is not None
    with pytest.raises(ActivationError, match="make the cache with --gradients"):
        CacheStream(without, batch_rows=8, seed=0, with_gradients=True)


def test_one_epoch_hands_out_exactly_what_the_model_gave_in_the_documented_order(
    program, make_cache
):
    cache = make_cache(n_tokens=16 * 60)
    on_disk = cache.rows(torch.arange(cache.n_rows), with_context=True)
    # Lossless: each row is, bit for bit, what the model gave in bfloat16 for token and position.
    model = program.TableModel()
    places = zip(on_disk.tokens.tolist(), on_disk.position.tolist(), strict=True)
    given = []
    for token, position in places:
        context = torch.full((1, position + 1), token)
        given.append(model.capture(context, [cache.hook_point])[cache.hook_point][0, -1])
    assert cache.manifest["dtype"] == "bfloat16" and given[0].dtype == torch.bfloat16
    assert torch.equal(on_disk.activations, torch.stack(given).float())
    # One epoch, in batches that do not divide it.
    for seed, epoch in ((0, 0), (0, 1), (7, 0)):
        stream = CacheStream(cache, batch_rows=cache.n_rows, seed=seed)
        for _ in range(epoch):
            stream.next_batch()
        stream.batch_rows = 37
        batches = [stream.next_batch() for _ in range(-(-cache.n_rows // 37))]
        drawn = torch.cat([batch.activations for batch in batches])[: cache.n_rows]
        expected = Counter(map(tuple, on_disk.activations.tolist()))
        assert Counter(map(tuple, drawn.tolist())) == expected
        order = Permutation(cache.n_rows, seed, epoch)(np.arange(cache.n_rows))
        assert sorted(order.tolist()) == list(range(cache.n_rows))
        assert torch.equal(drawn, on_disk.activations[torch.from_numpy(order)])


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
    assert torch.equal(stream.statistics.mean, cache.statistics.mean)
    centred = cache.statistics.centred_mean_squared_norm
    assert stream.statistics.centred_mean_squared_norm == centred
    assert stream.statistics.norm_ceiling == cache.norm_ceiling
    assert stream.provenance()["cache_hash"] == cache.content_hash
    assert stream.excluded == cache.excluded and sum(stream.excluded.values()) > 0
