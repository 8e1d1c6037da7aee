"""The activations themselves in bins: what a dictionary's bits are compared with.

All channels have bins of one width, which is the best that can be done for a squared error
(Gersho and Gray, Vector Quantization, 1992, chapter 8): a channel that varies less than a bin costs
next to nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import root_scalar
from torch import Tensor

from .bits import BinCounts


@dataclass(frozen=True, eq=False)
class BinnedChannels:
    """Centred rows whose channels are put into bins."""

    rows: Float[Tensor, "rows d_out"]
    """About their mean."""

    @staticmethod
    def of(rows: Float[Tensor, "rows d_out"]) -> BinnedChannels:
        """The rows' own channels."""
        return BinnedChannels(rows - rows.mean(0))

    def principal(self) -> BinnedChannels:
        """The same rows in their principal components, the best linear transform there is for
        Gaussian rows; they are those of the very rows that are sent."""
        squares = (self.rows.T.double() @ self.rows.double()) / len(self.rows)
        directions = torch.linalg.eigh(squares).eigenvectors
        return BinnedChannels(self.rows @ directions.to(self.rows))

    def fvu(self, width: float) -> float:
        """Fraction of variance unexplained with bins of a width, each told by its middle."""
        error = self.rows - (self.rows / width).round() * width
        return _squares(error) / _squares(self.rows)

    def bits(self, fvu: float) -> float | None:
        """Bits per row at the width of bins that gives an error; None for an error of zero."""
        if fvu >= 1:
            return 0.0
        spread = math.sqrt(_squares(self.rows) / self.rows.numel())
        if fvu <= 0 or spread == 0:
            return None
        # With bins so narrow the error is their width squared over twelve.
        low = math.log2(spread * math.sqrt(fvu)) - 1
        high = math.log2(float(self.rows.abs().max())) + 2
        solved = root_scalar(lambda w: self.fvu(2**w) - fvu, bracket=(low, high), xtol=1e-3)
        width = 2**solved.root
        counts = BinCounts(self.rows.shape[1])
        channel = torch.arange(self.rows.shape[1], device=self.rows.device)
        for part in self.rows.split(1024):
            index = (part / width).round().long()
            counts.add(channel.expand(index.shape).flatten(), index.flatten())
        return float(counts.entropies().sum())


def _squares(rows: Tensor) -> float:
    return float(rows.square().sum(dtype=torch.float64))
