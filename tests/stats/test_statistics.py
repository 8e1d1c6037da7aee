"""Spread, correlations, bootstrap, moments, power laws and seeds against literal versions."""

import doctest
import importlib
import statistics

import numpy as np
import pytest
import scipy.stats
import torch

from saelab.errors import ConfigError
from saelab.stats.cosines import (
    most_similar,
    nearest,
    neighbour_map,
    principal_map,
    unit_rows,
)
from saelab.stats.moments import Moments
from saelab.stats.power_law import fit_power_law
from saelab.stats.seeds import (
    keyed_uniforms,
    murmur64,
    random_words,
    seeded_generator,
    splitmix64,
)
from saelab.stats.spread import (
    Spread,
    pearson,
    quantiles,
    spread_of,
    t_quantile,
)


@pytest.mark.parametrize(
    "module", ["assignment", "cosines", "moments", "power_law", "seeds", "spread", "zipf"]
)
def test_the_examples_of_the_docstrings_hold(module):
    found = importlib.import_module(f"saelab.stats.{module}")
    assert doctest.testmod(found, extraglobs={"torch": torch, "np": np}).failed == 0


def test_spread_over_seeds():
    values = [0.3, 0.1, 0.7, 0.2]
    spread = spread_of([None, *values])
    assert spread.mean == pytest.approx(statistics.mean(values)) and spread.n == 4
    assert spread.sd == pytest.approx(statistics.stdev(values))
    assert spread_of([]) == Spread(None, None, 0) and spread_of([2.0]) == Spread(2.0, None, 1)
    assert spread_of([0.1, 0.1, 0.1]) == Spread(0.1, 0.0, 3)


def test_t_quantiles_are_students_past_twenty_degrees_of_freedom_too():
    assert [round(t_quantile(n), 3) for n in (1, 5, 20)] == [12.706, 2.571, 2.086]
    assert t_quantile(25) == pytest.approx(2.0595, abs=1e-4)
    assert t_quantile(10**7) == pytest.approx(1.95996, abs=1e-4)


def test_correlations_are_scipys_and_undefined_where_nothing_varies():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(50, generator=generator, dtype=torch.float64)
    second = (first + torch.randn(50, generator=generator)).round()
    a, b = first.numpy(), second.numpy()
    assert pearson(first, second) == pytest.approx(scipy.stats.pearsonr(a, b).statistic)
    assert pearson(first, torch.ones(50)) is None
    assert quantiles(first, [0.1, 0.5]) == pytest.approx(np.quantile(a, [0.1, 0.5]).tolist())
    assert np.isnan(quantiles(first[:0], [0.5])).all()


def test_moments_in_batches_equal_those_of_all_rows():
    rows = 100 + torch.randn(90, 4, generator=torch.Generator().manual_seed(0)).double()
    group = torch.arange(90) % 3
    one, grouped = Moments(4), Moments(4, 3)
    for part, groups in zip(rows.split(17), group.split(17), strict=True):
        one.update(part)
        grouped.update(part, groups)
    one.update(rows[:0])
    for moments in (one, grouped):
        torch.testing.assert_close(moments.mean(), rows.mean(0))
        torch.testing.assert_close(moments.variance(), rows.var(0, correction=0))
        assert moments.n_rows == 90
    for index in range(3):
        expected = (rows[group == index] - rows.mean(0)).square().sum()
        torch.testing.assert_close(grouped.deviation()[index], expected)


def _nearest_of(vectors, k):
    ((_, cosine, index),) = most_similar(unit_rows(vectors), None, k)
    return cosine.numpy(), index.numpy()


def test_a_map_keeps_neighbours_that_two_components_lose():
    """Sixteen orthogonal clusters: no two directions tell them apart, their neighbours do."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(32)[:16].repeat_interleave(12, 0)
    vectors = centres + 0.05 * torch.randn(192, 32, generator=generator)
    near = _nearest_of(vectors, 11)
    places, method, kept = neighbour_map(vectors, *near)
    again, _, _ = neighbour_map(vectors, *near)
    np.testing.assert_array_equal(places, again)
    assert method.startswith("t-SNE") and kept > 0.8
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    cluster = np.arange(192) // 12
    assert (cluster[distance.argmin(1)] == cluster).all()
    components = principal_map(vectors).numpy()
    distance = np.linalg.norm(components[:, None] - components[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    found = np.argsort(distance, axis=1)[:, :10]
    lost = np.mean(
        [np.isin(row, true[:10]).mean() for row, true in zip(found, near[1], strict=True)]
    )
    assert lost < kept - 0.2


def test_too_few_or_equal_vectors_keep_the_components():
    generator = torch.Generator().manual_seed(1)
    few = torch.randn(5, 3, generator=generator)
    places, method, kept = neighbour_map(few, *_nearest_of(few, 30))
    unit = unit_rows(few.double()).numpy()
    left, singular, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs(left * singular)[:, :2], atol=1e-9)
    assert method.startswith("two principal components") and kept == 1.0
    for equal in (torch.ones(12, 4), torch.ones(12, 1), torch.ones(1, 4)):
        places, _, _ = neighbour_map(equal, *_nearest_of(equal, 30))
        assert places.shape == (len(equal), 2) and np.isfinite(places).all()


def test_the_most_similar_leave_the_row_itself_out():
    rows = unit_rows(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)))
    whole = (rows @ rows.T).fill_diagonal_(-torch.inf)
    ((_, values, index),) = most_similar(rows, None, 3)
    assert torch.equal(index, whole.topk(3).indices)
    torch.testing.assert_close(values, whole.topk(3).values)
    ((_, _, only),) = most_similar(rows, rows[:4], 1)
    assert torch.equal(only[:, 0], nearest(rows, rows[:4])[1])


def test_a_power_law_is_found_again_and_its_asymptote_lies_in_the_interval():
    widths = np.array([512, 1024, 2048, 4096, 8192, 16384.0])
    exact = fit_power_law(widths, 0.11 + 2.5 * widths**-0.4)
    assert (exact.c, exact.a, exact.m) == pytest.approx((0.11, 2.5, 0.4), rel=1e-3)
    assert exact.rms < 1e-6
    noise = np.random.default_rng(0).standard_normal(6) * 0.002
    noisy = fit_power_law(widths, 0.11 + 2.5 * widths**-0.4 + noise)
    assert 0 <= noisy.c_low <= 0.11 <= noisy.c_high <= noisy.profile_c[-1]
    with pytest.raises(ConfigError, match="give dictionaries of at least 4 widths"):
        fit_power_law(widths[:3], widths[:3])


def test_the_mixers_are_those_that_saved_orders_and_samples_stand_on():
    # SplitMix64's published first outputs for seed 1234567 (state advances by the golden gamma).
    state = 1234567 + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(state).tolist() == published
    assert murmur64(np.array([0, 1], np.uint64)).tolist() == [0, 5515692219954034103]
    assert random_words(5, 3)[:3].tolist() == random_words(3, 3).tolist()
    uniforms = keyed_uniforms(np.arange(10_000, dtype=np.uint64), 7)
    assert uniforms.min() >= 0 and uniforms.max() < 1
    assert uniforms.mean() == pytest.approx(0.5, abs=0.02)
    draws = [torch.rand(1, generator=seeded_generator("a", seed)).item() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
