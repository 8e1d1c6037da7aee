"""The one-to-one assignment is exact: against all permutations, and with a proof of optimality."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from saelab.evals.recovery.assignment import _Assignment, best_assignment


def total(score, columns):
    return sum(score[row, column] for row, column in enumerate(columns) if column >= 0)


def best_by_trying(score):
    n_rows, n_columns = score.shape
    if n_rows > n_columns:
        return best_by_trying(score.T)
    return max(total(score, columns) for columns in permutations(range(n_columns), n_rows))


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(
        # Few values, so that ties abound.
        lambda shape: arrays.arrays(np.float64, shape, elements=st.sampled_from([-1, 0, 0.5, 0.9]))
    )
)
def test_it_is_the_best_of_all_permutations(score):
    columns = best_assignment(score)
    given_away = columns[columns >= 0]
    assert len(set(given_away.tolist())) == len(given_away) == min(score.shape)
    assert total(score, columns) == pytest.approx(best_by_trying(score))


@pytest.mark.parametrize("shape", [(60, 60), (60, 100), (1, 40)])
@pytest.mark.parametrize("kind", ["normal", "ties", "one column wanted by all"])
def test_prices_prove_it_optimal(shape, kind):
    generator = np.random.default_rng(1)
    score = generator.standard_normal(shape)
    if kind == "ties":
        score = score.round()
    if kind == "one column wanted by all":
        score[:, 0] += 10
    found = _Assignment(-score)
    for row in np.flatnonzero(found.column_of < 0):
        found.assign(int(row))
    columns = best_assignment(score)
    assert np.array_equal(columns, found.column_of)
    reduced = -score - found.row_price[:, None] - found.column_price
    assert reduced.min() > -1e-9
    assert (found.column_price <= 1e-9).all()
    free = np.setdiff1d(np.arange(shape[1]), columns)
    assert np.abs(found.column_price[free]).max(initial=0) < 1e-9
    # Feasible prices bound every assignment's cost from below; this one reaches the bound.
    bound = found.row_price.sum() + found.column_price.sum()
    assert total(-score, columns) == pytest.approx(bound)


def test_rows_are_left_over_where_columns_are_few():
    score = np.array([[0.1, 0.2], [0.9, 0.3], [0.2, 0.8]])
    assert best_assignment(score).tolist() == [-1, 0, 1]
    assert best_assignment(np.zeros((0, 3))).tolist() == []
    assert best_assignment(np.zeros((3, 0))).tolist() == [-1, -1, -1]


def test_the_sum_decides_not_the_first_to_choose():
    score = np.array([[0.95, 0.94], [0.93, 0.1]])
    assert best_assignment(score).tolist() == [1, 0]
