"""The one-to-one assignment is exact: against all permutations and a linear programme."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import linprog

from saelab.stats import assignment
from saelab.stats.assignment import auction, best_assignment, match_one_to_one


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
def test_the_linear_programme_proves_it_optimal(shape, kind):
    generator = np.random.default_rng(1)
    score = generator.standard_normal(shape)
    if kind == "ties":
        score = score.round()
    if kind == "one column wanted by all":
        score[:, 0] += 10
    columns = best_assignment(score)
    # The linear programme's optimum bounds every assignment; its dual is the proof.
    n_rows, n_columns = shape
    once = np.zeros((n_rows + n_columns, n_rows, n_columns))
    once[np.arange(n_rows), np.arange(n_rows), :] = 1
    once[n_rows + np.arange(n_columns), :, np.arange(n_columns)] = 1
    sums = once.reshape(n_rows + n_columns, -1)
    rows, columns_at_most_once = sums[:n_rows], sums[n_rows:]
    optimum = linprog(
        -score.reshape(-1),
        A_ub=columns_at_most_once,
        b_ub=np.ones(n_columns),
        A_eq=rows,
        b_eq=np.ones(n_rows),
    )
    assert total(score, columns) == pytest.approx(-optimum.fun)


def test_rows_are_left_over_where_columns_are_few():
    score = np.array([[0.1, 0.2], [0.9, 0.3], [0.2, 0.8]])
    assert best_assignment(score).tolist() == [-1, 0, 1]
    assert best_assignment(np.zeros((0, 3))).tolist() == []
    assert best_assignment(np.zeros((3, 0))).tolist() == [-1, -1, -1]


def test_the_sum_decides_not_the_first_to_choose():
    score = np.array([[0.95, 0.94], [0.93, 0.1]])
    assert best_assignment(score).tolist() == [1, 0]


def test_the_auction_takes_over_where_the_matrix_would_not_fit(monkeypatch):
    drawn = torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.nn.functional.normalize(drawn, dim=2)
    exact, gap = match_one_to_one(rows, columns)
    assert gap == 0
    monkeypatch.setattr(assignment, "EXACT_ENTRIES", 899)
    near, bound = match_one_to_one(rows, columns)
    assert torch.equal(near, auction(rows, columns)[0]) and bound <= assignment.TOLERANCE
    cosines = rows.double() @ columns.double().T
    best, reached = (cosines[torch.arange(30), match].mean() for match in (exact, near))
    assert best - bound - 1e-6 <= reached <= best + 1e-6
