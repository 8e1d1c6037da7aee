"""The token-identity baseline: predict a number by its mean over rows of the same token.

Held out: the means are of the training rows, the score is of the test rows, and a token never seen
in training gets the mean of all training rows. In sample, as published: every row contributes to
its own mean, which flatters rare tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .split import CONTEXT_TRAIN, N_CELLS


class TokenMeans:
    """Counts and sums of one number by token id and cell; grows with the vocabulary alone."""

    def __init__(self) -> None:
        self.count = torch.zeros(N_CELLS, 0, dtype=torch.float64)
        self.total = torch.zeros(N_CELLS, 0, dtype=torch.float64)
        self.square = torch.zeros(N_CELLS, dtype=torch.float64)

    def update(
        self,
        tokens: Int[Tensor, " rows"],
        values: Float[Tensor, " rows"],
        cell: Int[Tensor, " rows"],
    ) -> None:
        """Add rows."""
        if len(tokens) == 0:
            return
        missing = int(tokens.max()) + 1 - self.count.shape[1]
        if missing > 0:
            self.count = torch.nn.functional.pad(self.count, (0, missing))
            self.total = torch.nn.functional.pad(self.total, (0, missing))
        width = self.count.shape[1]
        place = cell * width + tokens
        self.count.view(-1).index_add_(0, place, torch.ones_like(values))
        self.total.view(-1).index_add_(0, place, values)
        self.square.index_add_(0, cell, values.square())

    def held_out_r_squared(self) -> float | None:
        """R² on the test contexts of means over the training contexts; None where undefined."""
        train = torch.zeros(N_CELLS, dtype=torch.bool)
        train[list(CONTEXT_TRAIN)] = True
        return self._r_squared(train, ~train)

    def in_sample_r_squared(self) -> float | None:
        """R² on all rows of means over the same rows; None where undefined."""
        everywhere = torch.ones(N_CELLS, dtype=torch.bool)
        return self._r_squared(everywhere, everywhere)

    def _r_squared(self, fitted: Tensor, scored: Tensor) -> float | None:
        n_fit, n = self.count[fitted].sum(), self.count[scored].sum()
        if n_fit == 0 or n == 0:
            return None
        count, total = self.count[fitted].sum(0), self.total[fitted].sum(0)
        mean = torch.where(count > 0, total / count.clamp(min=1), total.sum() / n_fit)
        n_token, sum_token = self.count[scored].sum(0), self.total[scored].sum(0)
        square = self.square[scored].sum()
        error = square - 2 * (mean * sum_token).sum() + (mean.square() * n_token).sum()
        deviation = square - sum_token.sum().square() / n
        return float(1 - error / deviation) if deviation > 0 else None
