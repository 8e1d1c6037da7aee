from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.cache.permutation import Permutation


def chi_squared_limit(freedom: int) -> float:
    """What a chi-squared statistic exceeds once in 10,000 times (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3


@settings(deadline=None)
@given(n=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**31))
def test_is_a_bijection(n, seed, epoch):
    items = Permutation(n, seed, epoch)(np.arange(n))
    assert np.array_equal(np.sort(items), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65])
def test_small_sizes_are_bijections(n):
    for epoch in range(50):
        assert sorted(Permutation(n, 0, epoch)(np.arange(n)).tolist()) == list(range(n))


@settings(deadline=None)
@given(n=st.integers(100, 5000), start=st.integers(0, 99))
def test_positions_are_independent_of_how_they_are_cut(n, start):
    order = Permutation(n, 1, 2)
    assert np.array_equal(order(np.arange(n))[start:], order(np.arange(start, n)))


def test_seeds_and_epochs_give_different_orders():
    positions = np.arange(1000)
    orders = [Permutation(1000, seed, epoch)(positions) for seed in range(4) for epoch in range(4)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Two random orders agree in one place on average.
            assert (one == other).sum() < 10


def test_every_item_is_equally_likely_everywhere():
    n, trials = 10, 4000
    counts = np.zeros((n, n))
    for trial in range(trials):
        counts[np.arange(n), Permutation(n, trial)(np.arange(n))] += 1
    statistic = ((counts - trials / n) ** 2 / (trials / n)).sum()
    assert statistic < chi_squared_limit((n - 1) ** 2)


def test_neighbours_are_not_kept_together():
    n = 100_000
    items = Permutation(n, 5)(np.arange(n)).astype(float)
    assert abs(np.corrcoef(items[:-1], items[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(n), items)[0, 1]) < 0.02
    # The first batch is spread evenly over the pool.
    buckets = np.bincount((items[:4096] // (n / 16)).astype(int), minlength=16)
    assert ((buckets - 256) ** 2 / 256).sum() < chi_squared_limit(15)


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Permutation(0, 1)
