"""Counts, means and cross products of two sets of columns, streamed in float64, by cell of rows.

Sums are taken about running means (Chan's merge): a residual stream's mean is half of its squared
norm, and a difference of large sums would lose the digits that count. Rows fall into cells (train
or test, by each way of splitting), so that the sums of any part of the rows can be had afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.stats.metrics import require_finite


class CrossStatistics:
    """Counts, means and centred cross products of two sets of columns, by cell.

    Args:
        n_left: columns of the one.
        n_right: columns of the other.
        n_cells: into how many cells rows fall.
        device: where the sums lie.
    """

    def __init__(
        self, n_left: int, n_right: int, n_cells: int = 1, device: torch.device | str = "cpu"
    ):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(n_cells, *shape, dtype=torch.float64, device=device)

        self.count = zeros()
        self.mean_left, self.mean_right = zeros(n_left), zeros(n_right)
        self.product = zeros(n_left, n_right)
        self.square_right = zeros(n_right)

    def update(
        self,
        left: Float[Tensor, "rows left"],
        right: Float[Tensor, "rows right"],
        cell: Int[Tensor, " rows"] | None = None,
    ) -> None:
        """Add rows; `cell` says into which each falls (default: all into the first).

        Raises:
            ActivationError: a value is not finite.
        """
        left, right = left.to(self.mean_left), right.to(self.mean_right)
        if cell is None:
            self._add(0, left, right)
            return
        cell = cell.to(left.device)
        for place in range(len(self.count)):
            chosen = cell == place
            if bool(chosen.any()):
                self._add(place, left[chosen], right[chosen])

    def _add(self, cell: int, left: Tensor, right: Tensor) -> None:
        n = left.shape[0]
        if n == 0:
            return
        mean_left, mean_right = left.mean(0), right.mean(0)
        # A mean is finite only if every value is; looking at each one costs more than the mean.
        if not bool(mean_left.sum().isfinite() & mean_right.sum().isfinite()):
            require_finite(left, "the regressors")
            require_finite(right, "the targets")
        about_left, about_right = left - mean_left, right - mean_right
        part = CrossSums(
            n_rows=float(n),
            mean_left=mean_left,
            mean_right=mean_right,
            product=about_left.T @ about_right,
            square_right=about_right.square().sum(0),
        )
        merged = self._cell(cell).merged(part)
        self.count[cell] = merged.n_rows
        self.mean_left[cell], self.mean_right[cell] = merged.mean_left, merged.mean_right
        self.product[cell], self.square_right[cell] = merged.product, merged.square_right

    def _cell(self, cell: int) -> CrossSums:
        return CrossSums(
            n_rows=float(self.count[cell]),
            mean_left=self.mean_left[cell],
            mean_right=self.mean_right[cell],
            product=self.product[cell],
            square_right=self.square_right[cell],
        )

    def merged(self, cells: Sequence[int] | None = None) -> CrossSums:
        """The sums of some cells, or of all, taken together."""
        first, *rest = range(len(self.count)) if cells is None else cells
        total = self._cell(first)
        for cell in rest:
            total = total.merged(self._cell(cell))
        return total


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossSums:
    """What `CrossStatistics` knows of some rows."""

    n_rows: float
    mean_left: Tensor
    mean_right: Tensor
    product: Tensor
    square_right: Tensor

    def merged(self, other: CrossSums) -> CrossSums:
        """Both taken together, about the mean of both."""
        total = max(self.n_rows + other.n_rows, 1.0)
        share = other.n_rows / total
        weight = self.n_rows * share
        left, right = other.mean_left - self.mean_left, other.mean_right - self.mean_right
        return CrossSums(
            n_rows=self.n_rows + other.n_rows,
            mean_left=self.mean_left + share * left,
            mean_right=self.mean_right + share * right,
            product=self.product + other.product + weight * torch.outer(left, right),
            square_right=self.square_right + other.square_right + weight * right.square(),
        )
