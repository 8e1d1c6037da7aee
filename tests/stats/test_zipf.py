"""Budgets by Zipf's law against the golden table, and the fit against laws it must find again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import ConfigError
from saelab.stats.zipf import fit_zipf, zipf_budgets, zipf_shares

K = 32
# B, F, s, q; raw m_1 / B, raw m_F, share of raw m < 1; in [1, B]: m_1, median, m_F.
GOLDEN = [
    (2048, 12288, 1.0, 0.0, 3.20, 0.53, 0.47, 2048, 1, 1),
    (4096, 24576, 1.0, 0.0, 2.99, 0.50, 0.50, 4096, 1, 1),
    (4096, 24576, 1.0, 10.0, 0.37, 0.69, 0.31, 1519, 1, 1),
    (4096, 24576, 0.7, 0.0, 0.48, 1.67, 0.0, 1974, 3, 2),
    (8192, 24576, 1.0, 0.0, 2.99, 1.00, 0.0, 8192, 2, 1),
    (8192, 24576, 1.0, 10.0, 0.37, 1.37, 0.0, 3072, 3, 1),
    (32768, 24576, 1.0, 10.0, 0.37, 5.50, 0.0, 12287, 11, 5),
]


@pytest.mark.parametrize("row", GOLDEN)
def test_budgets_are_those_of_the_golden_table(row):
    rows, latents, exponent, offset, first, last, below, largest, median, smallest = row
    shares = zipf_shares(latents, exponent=exponent, offset=offset)
    raw = K * rows * shares
    assert float(raw[0]) / rows == pytest.approx(first, abs=0.006)
    assert float(raw[-1]) == pytest.approx(last, abs=0.006)
    assert float((raw < 1).double().mean()) == pytest.approx(below, abs=0.006)
    budgets = zipf_budgets(
        latents, K * rows, exponent=exponent, offset=offset, smallest=1, largest=rows
    )
    assert int(budgets.sum()) == K * rows
    assert int(budgets[0]) == pytest.approx(largest, abs=1)
    assert int(budgets.median()) == median and int(budgets[-1]) == smallest


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 300),
    exponent=st.floats(0, 4),
    offset=st.floats(0, 50),
    smallest=st.integers(0, 3),
    spread=st.integers(0, 60),
    share=st.floats(0, 1),
)
def test_budgets_have_exactly_the_sum_within_the_limits_and_fall_with_rank(
    n, exponent, offset, smallest, spread, share
):
    largest = smallest + spread
    total = n * smallest + round(share * n * spread)
    budgets = zipf_budgets(
        n, total, exponent=exponent, offset=offset, smallest=smallest, largest=largest
    )
    assert int(budgets.sum()) == total
    assert int(budgets.min()) >= smallest and int(budgets.max()) <= largest
    assert bool((budgets.diff() <= 1).all())


def test_uniform_budgets_are_equal_and_infeasible_ones_refused():
    equal = zipf_budgets(10, 40, exponent=0.0, offset=0.0, smallest=1, largest=10)
    assert equal.tolist() == [4] * 10
    with pytest.raises(ConfigError, match=r"cannot sum to 9: the sum must lie in 10 to 100"):
        zipf_budgets(10, 9, exponent=1.0, offset=0.0, smallest=1, largest=10)


@pytest.mark.parametrize(("exponent", "offset"), [(1.0, 10.0), (0.7, 0.0), (1.6, 50.0)])
def test_a_law_is_found_again_from_its_densities(exponent, offset):
    density = 8 * zipf_shares(2000, exponent=exponent, offset=offset)
    shuffled = density[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    fit = fit_zipf(torch.cat([shuffled, torch.zeros(30)]))
    assert fit is not None
    assert fit.exponent == pytest.approx(exponent, rel=1e-6) and fit.offset == offset
    assert fit.r_squared == pytest.approx(1.0) and fit.tail_gap == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(fit.densities(2000), density)


def test_a_short_tail_shows_as_a_gap_and_too_little_to_fit_is_said():
    density = zipf_shares(1000, exponent=1.0, offset=0.0)
    density[800:] /= 10
    fit = fit_zipf(density)
    assert fit is not None and fit.tail_gap == pytest.approx(2.302585, abs=1e-3)
    assert fit_zipf(torch.zeros(100)) is None
    assert fit_zipf(torch.full((100,), 0.1)) is None


def test_a_law_so_steep_that_shares_underflow_still_gives_budgets():
    budgets = zipf_budgets(24576, 40_000, exponent=100.0, offset=0.0, smallest=1, largest=2048)
    assert int(budgets.sum()) == 40_000
    assert int(budgets[0]) == 2048 and int(budgets[-1]) == 1
    assert bool((budgets.diff() <= 0).all())
