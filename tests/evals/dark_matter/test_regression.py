"""Streamed least squares against dense float64 algebra, and the guards."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import ActivationError
from saelab.evals.dark_matter.regression import RegressionScores, RegressionStatistics


def rows(n=400, d=6, m=4, seed=0, mean=50.0):
    """Regressors with a large mean, and targets with an affine part and noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + mean
    weight = torch.randn(d, m, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, m, generator=generator, dtype=torch.float64)
    return x, x @ weight + 3 + 0.5 * noise


def dense_fit(x, y, *, intercept):
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1) if intercept else x
    solved = torch.linalg.lstsq(design, y).solution
    return design @ solved, solved


def collect(x, y, n_cells=1, cell=None, batch=97):
    statistics = RegressionStatistics(x.shape[1], y.shape[1], n_cells)
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        statistics.update(x[part], y[part], None if cell is None else cell[part])
    return statistics


@pytest.mark.parametrize("intercept", [True, False])
def test_fit_and_score_equal_dense_least_squares(intercept):
    x, y = rows()
    cell = (torch.arange(len(x)) % 3 == 0).long()
    statistics = collect(x, y, 2, cell)
    fitted = statistics.moments([0]).fit(intercept=intercept, ridge=1e-14)
    _, solved = dense_fit(x[cell == 0], y[cell == 0], intercept=intercept)
    assert torch.allclose(fitted.weight, solved[: x.shape[1]], atol=1e-8)
    test_x, test_y = x[cell == 1], y[cell == 1]
    residual = test_y - test_x @ fitted.weight - fitted.bias
    held_out = statistics.moments([1])
    scores = held_out.score(fitted)
    deviation = (test_y - test_y.mean(0)).square().sum(0)
    assert held_out.n_rows == len(test_x)
    assert torch.allclose(scores.squared_error, residual.square().sum(0), rtol=1e-9)
    assert torch.allclose(scores.r_squared, 1 - residual.square().sum(0) / deviation, atol=1e-9)
    assert scores.mean_r_squared() == pytest.approx(
        float((1 - residual.square().sum(0) / deviation).mean()), abs=1e-9
    )
    assert scores.pooled_r_squared() == pytest.approx(
        float(1 - residual.square().sum() / deviation.sum()), abs=1e-9
    )


def test_moments_of_several_cells_are_those_of_their_rows():
    x, y = rows(n=120)
    cell = torch.arange(120) % 4
    together = collect(x, y, 4, cell).moments([1, 3])
    alone = collect(x[cell % 2 == 1], y[cell % 2 == 1]).moments()
    assert together.n_rows == alone.n_rows == 60
    for name in ("mean_regressors", "mean_targets", "gram", "cross", "squares"):
        assert torch.allclose(getattr(together, name), getattr(alone, name), rtol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 400))
def test_the_batch_size_decides_nothing(batch):
    x, y = rows()
    one, other = collect(x, y, batch=batch).moments(), collect(x, y, batch=400).moments()
    assert torch.allclose(one.gram, other.gram, rtol=1e-11, atol=1e-9)
    assert torch.allclose(one.fit().weight, other.fit().weight, rtol=1e-9)


def test_a_large_mean_loses_no_digits():
    """Sums about zero would: the mean is 10⁶ standard deviations away."""
    x, y = rows(mean=1e6)
    moments = collect(x, y - y.mean(0)).moments()
    centred = x - x.mean(0)
    assert torch.allclose(moments.gram, centred.T @ centred, rtol=1e-7, atol=1e-6)


def test_a_constant_costs_nothing_with_an_intercept_and_much_without():
    """P1: with R² about the mean, leaving the intercept away is pessimistic."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.ones(3, 1, dtype=torch.float64) + 100
    moments = collect(x, y).moments()
    assert moments.score(moments.fit()).mean_r_squared() == pytest.approx(1, abs=1e-9)
    assert moments.score(moments.fit(intercept=False)).mean_r_squared() < 0


def test_residuals_of_fitted_rows_flatter_by_as_much_as_least_squares_says():
    """P3, P4: of pure noise (1 - d/n) is left on fitted rows, more than all of it elsewhere."""
    generator = torch.Generator().manual_seed(0)
    n, d = 2000, 200
    x = torch.randn(2 * n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(2 * n, 8, generator=generator, dtype=torch.float64)
    cell = (torch.arange(2 * n) >= n).long()
    statistics = collect(x, y, 2, cell, batch=500)
    fitted = statistics.moments([0]).fit()
    train = statistics.moments([0]).score(fitted).pooled_r_squared()
    test = statistics.moments([1]).score(fitted).pooled_r_squared()
    assert train == pytest.approx(d / n, abs=0.02)
    assert test == pytest.approx(-d / (n - d), abs=0.04)


def test_a_rank_deficient_design_is_solved_and_said(caplog):
    """P7: a dimension twice, and one that is a sum of others."""
    x, y = rows(mean=0.0)
    x = torch.cat([x, x[:, :1], x[:, :2].sum(1, keepdim=True)], dim=1)
    moments = collect(x, y).moments()
    with caplog.at_level(logging.WARNING):
        fitted = moments.fit(what="a deficient design")
    assert "a deficient design: 2 of 8 directions" in caplog.text
    assert bool(fitted.weight.isfinite().all())
    reference, _ = dense_fit(x[:, :6], y, intercept=True)
    best = float(1 - (y - reference).square().sum() / (y - y.mean(0)).square().sum())
    assert moments.score(fitted).pooled_r_squared() == pytest.approx(best, abs=1e-6)


def test_regressors_that_do_not_vary_predict_the_mean(caplog):
    _, y = rows(n=50)
    moments = collect(torch.full((50, 2), 3.0), y).moments()
    fitted = moments.fit(what="constants")
    assert "constants: no regressor varies" in caplog.text
    assert moments.score(fitted).pooled_r_squared() == pytest.approx(0, abs=1e-9)


def test_dimensions_that_hardly_vary_are_left_out_of_the_mean_and_counted(caplog):
    """P6: the mean over dimensions would otherwise be decided by 0/0."""
    x, y = rows(m=3)
    y = torch.cat([y, torch.full((len(y), 1), 7.0), 1e-7 * y[:, :1]], dim=1)
    scores = (moments := collect(x, y).moments()).score(moments.fit())
    with caplog.at_level(logging.WARNING):
        mean = scores.mean_r_squared("the test")
    assert "the test: 2 of 5 dimensions vary less than 1e-08 of the largest" in caplog.text
    assert mean == pytest.approx(float(scores.r_squared[:3].mean()))
    assert bool(scores.r_squared[3:].isnan().all())


def test_targets_that_do_not_vary_at_all_have_no_score():
    zero = torch.zeros(2, dtype=torch.float64)
    scores = RegressionScores(squared_error=zero, deviation=zero)
    assert scores.mean_r_squared() is None
    assert scores.pooled_r_squared() is None


def test_too_few_rows_are_refused():
    x, y = rows(n=7, d=6)
    with pytest.raises(
        ActivationError, match=r"has 7 rows to fit 7 coefficients.*give more tokens"
    ):
        collect(x, y).moments().fit(what="the error")


def test_values_that_are_not_finite_are_refused():
    x, y = rows(n=10)
    y[3, 1] = torch.nan
    with pytest.raises(ActivationError, match="the targets holds 1 values of 40"):
        collect(x, y)


def test_a_shared_design_must_hold_the_same_rows():
    x, y = rows(n=30)
    first = collect(x, y)
    second = RegressionStatistics(6, 4, design=first.design)
    second.update(x[:20], y[:20])
    with pytest.raises(ValueError, match="the shared design holds 30 rows, the targets 20"):
        second.moments()
    second.update(x[20:], y[20:])
    assert torch.allclose(second.moments().fit().weight, first.moments().fit().weight)
