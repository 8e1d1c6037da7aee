"""Moments from which the regression of any mixture of planted noise can be written down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .regression import CrossStatistics, RegressionMoments


class NoiseMoments:
    """Streamed moments of clean rows, two noises, and several reconstructions of the clean rows.

    Args:
        d_in: width of a row.
        n_reconstructions: how many reconstructions of each row there are.
        device: where the sums lie.
    """

    def __init__(self, d_in: int, n_reconstructions: int, device: torch.device | str = "cpu"):
        self.d_in = d_in
        n_right = (3 + n_reconstructions) * d_in
        # Regressors are mixtures of clean rows and the first noise; errors of all there is.
        self._left = CrossStatistics(2 * d_in, n_right, device=device)
        self._squares = torch.zeros(
            3 + n_reconstructions, 3 + n_reconstructions, d_in, dtype=torch.float64, device=device
        )

    def update(
        self,
        clean: Float[Tensor, "rows d_in"],
        dense: Float[Tensor, "rows d_in"],
        introduced: Float[Tensor, "rows d_in"],
        reconstructions: Sequence[Float[Tensor, "rows d_in"]],
    ) -> None:
        """Add rows.

        Raises:
            ActivationError: a value is not finite.
        """
        columns = [part.double() for part in (clean, dense, introduced, *reconstructions)]
        self._left.update(torch.cat(columns[:2], 1), torch.cat(columns, 1))
        for one, left in enumerate(columns):
            for other in range(one, len(columns)):
                total = (left * columns[other]).sum(0)
                self._squares[one, other] += total
                if other != one:
                    self._squares[other, one] += total

    @property
    def n_rows(self) -> int:
        """Rows seen."""
        return int(self._left.count.sum())

    def regression(self, dense: float, introduced: float, reconstruction: int) -> RegressionMoments:
        """Moments of the error x' − reconstruction' on x'.

        Args:
            dense: s_a in x' = clean + s_a · first noise.
            introduced: s_r in reconstruction' = reconstruction + s_r · second noise.
            reconstruction: which of the reconstructions.
        """
        sums, d = self._left.merged(), self.d_in
        mixture = torch.zeros(self._squares.shape[0], dtype=torch.float64)
        mixture[0], mixture[1], mixture[2], mixture[3 + reconstruction] = 1, dense, -introduced, -1
        mixture = mixture.to(sums.product)
        regressors = torch.tensor([1.0, dense]).to(sums.product)
        blocks = sums.product.view(2, d, -1, d)
        from_left = torch.einsum("a,aibj->ibj", regressors, blocks)
        means = sums.mean_right.view(-1, d)
        mean_targets = mixture @ means
        raw_squares = torch.einsum("a,b,abj->j", mixture, mixture, self._squares)
        return RegressionMoments(
            n_rows=self.n_rows,
            mean_regressors=regressors @ sums.mean_left.view(2, d),
            mean_targets=mean_targets,
            gram=torch.einsum("b,ibj->ij", regressors, from_left[:, :2]),
            cross=torch.einsum("b,ibj->ij", mixture, from_left),
            squares=(raw_squares - self.n_rows * mean_targets.square()).clamp(min=0),
        )
