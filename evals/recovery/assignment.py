"""The one-to-one assignment of largest total score: the Hungarian method, exact.

Successive shortest augmenting paths with dual variables (Jonker and Volgenant 1987; Crouse 2016
for rectangular matrices). It takes at most rows² steps over all columns; rows whose best columns
differ take one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def best_assignment(score: Matrix) -> Indices:
    """Give every row a column of its own so that the sum of their scores is the largest possible.

    Args:
        score: finite, [rows, columns].

    Returns:
        The column of each row; -1 for the rows left over where there are fewer columns.
    """
    n_rows, n_columns = score.shape
    if n_rows > n_columns:
        row_of = best_assignment(score.T)
        column_of = np.full(n_rows, -1, dtype=np.int64)
        column_of[row_of] = np.arange(n_columns)
        return column_of
    cost = -np.asarray(score, dtype=np.float64)
    state = _Assignment(cost)
    for row in np.flatnonzero(state.column_of < 0):
        state.assign(int(row))
    return state.column_of


class _Assignment:
    """A partial assignment with dual variables that prove it optimal for its rows.

    Always cost[r, c] ≥ row_price[r] + column_price[c], with equality where r has column c, and
    column_price ≤ 0, with equality where c is free.
    """

    def __init__(self, cost: Matrix):
        self.cost = cost
        n_rows, n_columns = cost.shape
        self.row_price = cost.min(axis=1, initial=np.inf)
        self.column_price = np.zeros(n_columns)
        self.column_of = np.full(n_rows, -1, dtype=np.int64)
        self.row_of = np.full(n_columns, -1, dtype=np.int64)
        if n_rows:
            wanted, first = np.unique(cost.argmin(axis=1), return_index=True)
            self.column_of[first], self.row_of[wanted] = wanted, first

    def assign(self, row: int) -> None:
        """Give a row a column, moving others along the cheapest path to a free column."""
        distance = np.full(len(self.row_of), np.inf)
        before = np.full(len(self.row_of), -1, dtype=np.int64)
        done = np.zeros(len(self.row_of), dtype=bool)
        reached, current, travelled = [], row, 0.0
        while True:
            reduced = self.cost[current] - self.row_price[current] - self.column_price
            shorter = ~done & (travelled + reduced < distance)
            distance[shorter] = travelled + reduced[shorter]
            before[shorter] = current
            column = int(np.where(done, np.inf, distance).argmin())
            travelled = distance[column]
            done[column] = True
            if self.row_of[column] < 0:
                break
            current = int(self.row_of[column])
            reached.append(current)
        passed = np.array(reached, dtype=np.int64)
        self.row_price[row] += travelled
        self.row_price[passed] += travelled - distance[self.column_of[passed]]
        self.column_price[done] -= travelled - distance[done]
        while True:
            owner = int(before[column])
            self.row_of[column] = owner
            column, self.column_of[owner] = int(self.column_of[owner]), column
            if owner == row:
                return
