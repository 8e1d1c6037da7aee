"""One-to-one matching: as many rows as possible get a column each, of largest total score.

Where the matrix of scores fits, scipy's exact assignment decides. Where it would not, cosines of
two sets of directions are matched by Bertsekas' auction (1988, "The auction algorithm: a
distributed relaxation method for the assignment problem"): every unmatched row bids for the column
it gains most from at current prices, and raises its price by what that column is worth to it above
the second best, plus a tolerance. The matching it ends with has a total cosine within the tolerance
per row of the best possible, whatever the directions. Where many rows want few columns they outbid
one another by the tolerance alone, for very long; then it is doubled. What the final prices prove
of the result is returned with it.

Cosines are computed in blocks and only each row's best few columns are kept. Prices never fall, so
while a row's second-best gain among those is at least the cosine of every other column, no other
column can be better; otherwise the row's cosines are computed again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .cosines import cosine_blocks, paired_products

EXACT_ENTRIES = 1 << 22
"""Pairs up to which `match_one_to_one` is exact: about a second."""
TOLERANCE = 0.001
KEPT_COLUMNS = 64
PATIENCE = 10
"""Rounds per row before the tolerance is doubled; dictionaries take one or two."""


def best_assignment(score: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Match every row to another column so that the sum of their scores is the largest possible.

    Args:
        score: finite, [rows, columns].

    Returns:
        The column of each row; -1 for the rows left over where there are fewer columns.

    Example:
        >>> best_assignment(np.array([[0.95, 0.94], [0.93, 0.1]])).tolist()
        [1, 0]
    """
    from scipy.optimize import linear_sum_assignment

    column_of = np.full(score.shape[0], -1, dtype=np.int64)
    rows, columns = linear_sum_assignment(score, maximize=True)
    column_of[rows] = columns
    return column_of


def match_one_to_one(
    rows: Float[Tensor, "n d_in"], columns: Float[Tensor, "m d_in"]
) -> tuple[Int[Tensor, " n"], float]:
    """Match as many rows as possible to a partner each, of the largest total cosine.

    Returns:
        The index in `columns` of each row's partner, -1 for those left over where there are fewer;
        and a bound on how far their mean cosine is below the best possible: 0 where it is exact.
    """
    if len(rows) * len(columns) > EXACT_ENTRIES:
        return auction(rows, columns)
    cosines = (rows.double() @ columns.double().T).cpu().numpy()
    return torch.from_numpy(best_assignment(cosines)).to(rows.device), 0.0


def auction(
    rows: Float[Tensor, "n d_in"],
    columns: Float[Tensor, "m d_in"],
    *,
    tolerance: float = TOLERANCE,
    kept_columns: int = KEPT_COLUMNS,
) -> tuple[Int[Tensor, " n"], float]:
    """`match_one_to_one` without the matrix, within a tolerance of the best.

    Args:
        tolerance: how far the mean cosine of the matched may be below the best possible, unless
            it had to be doubled.
        kept_columns: best columns remembered of each row; memory and speed, not the result.
    """
    n, m = rows.shape[0], columns.shape[0]
    if n > m:
        owner, gap = auction(columns, rows, tolerance=tolerance, kept_columns=kept_columns)
        partner = torch.full((n,), -1, dtype=torch.int64, device=rows.device)
        partner[owner] = torch.arange(m, device=rows.device)
        return partner, gap
    state = _Auction(rows, columns, min(max(kept_columns, 2), m), tolerance)
    rounds = 0
    while len(bidders := state.unmatched()):
        state.bid(bidders)
        rounds += 1
        if rounds % (PATIENCE * n) == 0:
            state.tolerance *= 2
    return state.column_of, state.gap()


class _Auction:
    """The state of an auction with at most as many rows as columns."""

    def __init__(self, rows: Tensor, columns: Tensor, kept: int, tolerance: float):
        n, m = rows.shape[0], columns.shape[0]
        self._rows, self._columns, self.tolerance = rows, columns, tolerance
        self.column_of = torch.full((n,), -1, device=rows.device)
        self._row_of = torch.full((m,), -1, device=rows.device)
        self._column = torch.zeros(n, kept, dtype=torch.int64, device=rows.device)
        self._price, self._cosine, self._ceiling = (
            torch.zeros(*shape, dtype=torch.float64, device=rows.device)
            for shape in ((m,), (n, kept), (n,))
        )
        if m:
            self._look_up(torch.arange(n, device=rows.device))

    def unmatched(self) -> Int[Tensor, " bidders"]:
        """Rows without a column."""
        return (self.column_of < 0).nonzero().flatten()

    def bid(self, rows: Int[Tensor, " bidders"]) -> None:
        """One round: the highest bid of each column wins it from the row that had it."""
        gain, choice = self._best_two(rows)
        stale = gain[:, -1] < self._ceiling[rows]
        if bool(stale.any()):
            self._look_up(rows[stale])
            gain, choice = self._best_two(rows)
        column = self._column[rows, choice[:, 0]]
        offer = self._price[column] + gain[:, 0] - gain[:, -1] + self.tolerance
        highest = torch.full_like(self._price, -torch.inf)
        highest.scatter_reduce_(0, column, offer, reduce="amax")
        # Of equal offers the first row's wins, so that the result is the same every time.
        leads = offer == highest[column]
        winner = torch.full_like(self._row_of, len(self.column_of))
        winner.scatter_reduce_(0, column[leads], rows[leads], reduce="amin")
        sold = (winner < len(self.column_of)).nonzero().flatten()
        losers = self._row_of[sold]
        self.column_of[losers[losers >= 0]] = -1
        self._row_of[sold] = winner[sold]
        self.column_of[winner[sold]] = sold
        self._price[sold] = highest[sold]

    def gap(self) -> float:
        """What duality leaves between the mean cosine of the matched and the best possible."""
        n = len(self.column_of)
        best_gains = sum(
            float((block.double() - self._price).amax(dim=1).sum())
            for _, block in cosine_blocks(self._rows, self._columns)
        )
        every_row = torch.arange(n, device=self.column_of.device)
        pairs = paired_products(self._rows, self._columns, every_row, self.column_of)
        return max(0.0, best_gains + float(self._price.sum()) - float(pairs.sum())) / max(n, 1)

    def _best_two(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gains of the best kept columns at current prices, and which they are."""
        gains = self._cosine[rows] - self._price[self._column[rows]]
        return gains.topk(min(2, gains.shape[1]), dim=1)

    def _look_up(self, rows: Tensor) -> None:
        """Remember each row's best columns at current prices, and what the others cannot exceed."""
        kept = self._column.shape[1]
        for part, block in cosine_blocks(self._rows[rows], self._columns):
            gains, columns = (block.double() - self._price).topk(kept, dim=1)
            self._column[rows[part]] = columns
            self._cosine[rows[part]] = gains + self._price[columns]
            self._ceiling[rows[part]] = (
                gains[:, -1] if kept < self._columns.shape[0] else -torch.inf
            )
