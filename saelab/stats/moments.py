"""Means and squared deviations of rows, streamed in float64 about running means.

Half of the mean squared norm of a residual stream is its mean vector, so sums of squares are never
subtracted from one another: batches are merged as Chan, Golub and LeVeque (1983) do.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Moments:
    """Counts, means and summed squared deviations of rows, by group and pooled.

    A group is whatever the caller wants a curve over, such as the position in the context; with one
    group this is a plain streamed mean and variance.

    Example:
        >>> moments = Moments(2)
        >>> moments.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        >>> moments.mean().tolist(), moments.variance().tolist()
        ([2.0, 0.0], [1.0, 0.0])
    """

    def __init__(self, d_in: int, n_groups: int = 1, device: torch.device | str = "cpu"):
        self.count = torch.zeros(n_groups, dtype=torch.float64, device=device)
        self.mean_by_group = torch.zeros(n_groups, d_in, dtype=torch.float64, device=device)
        self.squares_by_group = torch.zeros_like(self.mean_by_group)
        """Squared deviations from the group's mean, summed over rows, by dimension."""

    def update(
        self, rows: Float[Tensor, "batch d_in"], group: Int[Tensor, " batch"] | None = None
    ) -> None:
        """Add rows; `group` says to which group each belongs (default: all to the first)."""
        rows = rows.to(self.mean_by_group)
        if len(rows) == 0:
            return
        if group is None and len(self.count) == 1:
            count = torch.full_like(self.count, len(rows))
            mean = rows.mean(dim=0, keepdim=True)
            squares = (rows - mean).square().sum(dim=0, keepdim=True)
        else:
            if group is None:
                group = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
            count = torch.zeros_like(self.count).index_add_(0, group, torch.ones_like(rows[:, 0]))
            mean = torch.zeros_like(self.mean_by_group).index_add_(0, group, rows)
            mean /= count.clamp(min=1)[:, None]
            squares = torch.zeros_like(mean).index_add_(0, group, (rows - mean[group]).square())
        total = self.count + count
        share = (count / total.clamp(min=1))[:, None]
        gap = mean - self.mean_by_group
        self.squares_by_group += squares + gap.square() * self.count[:, None] * share
        self.mean_by_group += gap * share
        self.count = total

    @property
    def n_rows(self) -> int:
        """Rows seen so far."""
        return int(self.count.sum().item())

    def mean(self) -> Float[Tensor, " d_in"]:
        """Per-dimension mean of all rows, float64."""
        anchor = self.mean_by_group[int(self.count.argmax())]
        weights = self.count / self.count.sum().clamp(min=1)
        return anchor + weights @ (self.mean_by_group - anchor)

    def _squares(self) -> Float[Tensor, "groups d_in"]:
        gap = (self.mean_by_group - self.mean()).square()
        return self.squares_by_group + self.count[:, None] * gap

    def deviation(self) -> Float[Tensor, " groups"]:
        """Per group, the sum of |row - mean|^2 about the pooled mean of all rows."""
        return self._squares().sum(dim=1)

    def variance(self) -> Float[Tensor, " d_in"]:
        """Per dimension, the mean squared deviation of all rows from their mean."""
        return self._squares().sum(dim=0) / self.count.sum().clamp(min=1)
