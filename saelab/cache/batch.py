"""What readers and streams hand out: a batch of rows, and the statistics of the rows behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ActivationError


@dataclass(frozen=True, kw_only=True)
class ActivationBatch:
    """Rows of activations in float32, with what was asked for beside them.

    `targets` are what is written where that is another hook point than what is read; None: the
    activations themselves, as for a sparse autoencoder. `gradients` are of the summed next-token
    loss (nats) with respect to what is written. `tokens`,
    `sequence` (index of the context in the text) and `position` (in the context) say where a row
    comes from; they are None where the reader was not asked for them.
    """

    activations: Float[Tensor, "batch d_in"]
    targets: Float[Tensor, "batch d_out"] | None = None
    gradients: Float[Tensor, "batch d_written"] | None = None
    tokens: Int[Tensor, " batch"] | None = None
    sequence: Int[Tensor, " batch"] | None = None
    position: Int[Tensor, " batch"] | None = None


@dataclass(frozen=True, kw_only=True)
class RowStatistics:
    """Statistics of the rows that a token filter keeps, in the units of the activations."""

    n_rows: int
    """Rows that the statistics were taken over."""
    mean: Float[Tensor, " d_in"]
    """Mean of each dimension, float32."""
    mean_squared_norm: float
    """Mean of the squared Euclidean norm of the raw rows."""
    centred_mean_squared_norm: float
    """Mean of the squared norm after the mean is subtracted: the total variance."""
    norm_ceiling: float | None
    """Rows with a larger norm were excluded; None where no ceiling was set."""
    by_hook_point: tuple[RowStatistics, ...] = ()
    """Those of each hook point, where several stand side by side."""

    @classmethod
    def joined(cls, parts: Sequence[RowStatistics]) -> RowStatistics:
        """Of several hook points side by side; norms have no common ceiling."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            n_rows=parts[0].n_rows,
            mean=torch.cat([part.mean for part in parts]),
            mean_squared_norm=sum(part.mean_squared_norm for part in parts),
            centred_mean_squared_norm=sum(part.centred_mean_squared_norm for part in parts),
            norm_ceiling=None,
            by_hook_point=tuple(parts),
        )


@dataclass(frozen=True, kw_only=True)
class RowSums:
    """Float64 sums over rows, which add up exactly enough to centre what they describe."""

    n_rows: int
    total: Float[Tensor, " d_in"]
    squared_norm: float

    @classmethod
    def of(cls, rows: Float[Tensor, "rows d_in"], chunk: int = 8192) -> RowSums:
        """Sum rows of any float dtype; `chunk` rows at a time are held in float64."""
        total = torch.zeros(rows.shape[1], dtype=torch.float64)
        squared_norm = 0.0
        for part in rows.split(chunk):
            exact = part.double()
            total += exact.sum(0)
            squared_norm += float(exact.square_().sum())
        return cls(n_rows=len(rows), total=total, squared_norm=squared_norm)

    def __add__(self, more: RowSums) -> RowSums:
        return RowSums(
            n_rows=self.n_rows + more.n_rows,
            total=self.total + more.total,
            squared_norm=self.squared_norm + more.squared_norm,
        )

    def statistics(self, norm_ceiling: float | None) -> RowStatistics:
        """Turn the sums into means.

        Raises:
            ActivationError: there are no rows.
        """
        if self.n_rows == 0:
            raise ActivationError("no row passes the token filter: relax it or read more text")
        mean = self.total / self.n_rows
        mean_squared_norm = self.squared_norm / self.n_rows
        return RowStatistics(
            n_rows=self.n_rows,
            mean=mean.float(),
            mean_squared_norm=mean_squared_norm,
            centred_mean_squared_norm=max(0.0, mean_squared_norm - float(mean.square().sum())),
            norm_ceiling=norm_ceiling,
        )


def first_not_finite(rows: Float[Tensor, "rows d_in"]) -> int | None:
    """Index of the first row that holds a NaN or an infinity, or None.

    The sum is looked at first: it is not finite if any value is not, and costs a twentieth of
    looking at every value.
    """
    if bool(rows.sum().isfinite()):
        return None
    bad = ~rows.isfinite().all(dim=1)
    return int(bad.int().argmax()) if bool(bad.any()) else None
