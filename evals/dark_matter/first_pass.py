"""The first pass over the rows: every sum that a fit to the errors, or its score, needs.

One object holds the sums of one dictionary under one encoder. What does not depend on either, the
activations' own products, is collected once and shared (`CrossStatistics` of the design).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary
from saelab.dictionary.architectures import error_of
from saelab.sparse import SparseCodes
from saelab.stats.metrics import SparsityStatistics

from .regression import CrossStatistics, RegressionStatistics
from .rows import CONTEXT_TRAIN, N_CELLS, RowBatch

BASELINES = ("token_loss", "l0", "activation_norm")

"""Single numbers of a row that the error norm is regressed on beside the activation."""


@dataclass
class Shrinkage:
    """Sums that say how much shorter reconstructions are than activations, about the bias."""

    product: float = 0.0
    """Summed inner product of reconstruction and activation, both less the decoder bias."""
    activation: float = 0.0
    """Summed squared norm of the activation less the bias."""
    reconstruction: float = 0.0
    """Summed squared norm of the reconstruction less the bias."""

    def update(self, activations: Tensor, reconstruction: Tensor, bias: Tensor) -> None:
        """Add rows; `bias` is what no active latent would reconstruct."""
        x = activations.double() - bias.double()
        hat = reconstruction.double() - bias.double()
        self.product += float((x * hat).sum())
        self.activation += float(x.square().sum())
        self.reconstruction += float(hat.square().sum())

    @property
    def gamma(self) -> float | None:
        """<Sae(x) - b, x - b> / |x - b|², pooled over rows; None where no row differs from b."""
        return self.product / self.activation if self.activation > 0 else None

    def rescaled_error(self) -> float | None:
        """Summed squared error after Sae(x) - b is divided by gamma; None unless gamma > 0."""
        gamma = self.gamma
        if gamma is None or gamma <= 0:
            return None
        return self.activation - 2 * self.product / gamma + self.reconstruction / (gamma * gamma)


class LatentMoments:
    """Per latent, the count of positive codes and sums of their first three powers.

    Codes are taken in activation units: times their row's scale where rows are scaled.
    """

    def __init__(self, d_sae: int):
        self.count, self.total, self.square, self.cube = torch.zeros(
            4, d_sae, dtype=torch.float64
        ).unbind()

    def update(self, codes: SparseCodes) -> None:
        """Add the codes of some rows."""
        value, latent = scaled_values(codes).double().cpu(), codes.latent.cpu()
        for power, sums in enumerate((self.count, self.total, self.square, self.cube)):
            sums.index_add_(0, latent, torch.where(value > 0, value**power, 0.0))


@dataclass
class ErrorSums:
    """Sums over the rows for one dictionary under one encoder."""

    regression: RegressionStatistics
    """Of the error vector and its squared norm (the last target) on the activation."""
    errors: CrossStatistics
    """Products of the error's dimensions with one another."""
    baselines: dict[str, RegressionStatistics]
    """Of the squared error norm on one number of the row."""
    tokens: TokenMeans
    """Squared error norm by token id."""
    sparsity: SparsityStatistics
    """Codes."""
    latents: LatentMoments
    """Moments of each latent's codes."""
    shrinkage: Shrinkage = field(default_factory=Shrinkage)
    """Lengths of reconstructions."""
    normalised_error: float = 0.0
    """Summed |error|² / |activation|² (E12)."""
    n_rows: int = 0
    """Rows seen."""

    @classmethod
    def empty(cls, d_in: int, d_sae: int, design: CrossStatistics | None) -> ErrorSums:
        """No row seen yet.

        Args:
            d_in: width of the activations.
            d_sae: number of latents.
            design: products of the same rows' activations, from an earlier pass; None: collected.
        """
        return cls(
            regression=RegressionStatistics(d_in, d_in + 1, N_CELLS, design=design),
            errors=CrossStatistics(d_in, d_in, N_CELLS),
            baselines={name: RegressionStatistics(1, 1, N_CELLS) for name in BASELINES},
            tokens=TokenMeans(),
            sparsity=SparsityStatistics(d_sae),
            latents=LatentMoments(d_sae),
        )

    def update(
        self,
        batch: RowBatch,
        reconstruction: Float[Tensor, "rows d_in"],
        bias: Float[Tensor, "rows d_in"],
        codes: SparseCodes,
        cell: Int[Tensor, " rows"],
    ) -> None:
        """Add rows.

        Raises:
            ActivationError: something is not finite.
        """
        x = batch.activations
        error = error_of(x.double(), reconstruction.double())
        squared = error.square().sum(1, keepdim=True)
        self.regression.update(x, torch.cat([error, squared], dim=1), cell)
        self.errors.update(error, error, cell)
        norm = torch.linalg.vector_norm(x.double(), dim=1)
        known = {"token_loss": batch.loss, "l0": codes.l0().double().cpu(), "activation_norm": norm}
        for name, number in known.items():
            here = number.isfinite()
            self.baselines[name].update(number[here, None], squared[here], cell[here])
        self.tokens.update(batch.tokens, squared.squeeze(1), cell)
        self.sparsity.update(codes)
        self.latents.update(codes)
        self.shrinkage.update(x, reconstruction, bias)
        share = squared.squeeze(1) / norm.square()
        self.normalised_error += float(share[norm > 0].sum())
        self.n_rows += len(x)


def scaled_values(codes: SparseCodes) -> Float[Tensor, " pairs"]:
    """Each code times its row's scale: what multiplies the decoder row in activation units."""
    if codes.row_scale is None:
        return codes.value
    return codes.value * codes.row_scale[codes.pair_rows()]


def bias_rows(dictionary: Dictionary, codes: SparseCodes) -> Float[Tensor, "rows d_in"]:
    """What the dictionary would reconstruct of each row with no latent active."""
    bias = dictionary.b_dec.expand(codes.n_rows, -1)
    return bias if codes.row_scale is None else bias * codes.row_scale[:, None]


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
