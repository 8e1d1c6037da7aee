"""Analysis 12 and a control: what the norm probe's direction has to do with single latents.

The squared norm of a reconstruction, less its bias, is regressed on that reconstruction. For a sum
of sparse, nearly orthogonal features the optimal probe has the inner product E[w³] / E[w²] with
each feature's direction, w being its weight. The control does the same with the dictionary's own
codes dealt out to random rows, latent by latent, so that each latent keeps its values and which
ones are active together is left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary
from saelab.sparse import SparseCodes
from saelab.sparse.kernels import combine_latents

from .error_sums import ErrorSums, scaled_values
from .regression import RegressionStatistics
from .split import CONTEXT_TEST, CONTEXT_TRAIN, N_CELLS

WINDOW = 100
MOST_POINTS = 10_000
"""Latents shown at most, those of the largest mean code, as in the paper's figure."""


class DirectionSums:
    """Sums of squared norms on the vectors themselves, of reconstructions and of the control.

    Args:
        dictionary: whose latents are looked at.
        seed: deals the control's codes out.
    """

    def __init__(self, dictionary: Dictionary, seed: int):
        self._dictionary = dictionary
        self._generator = torch.Generator().manual_seed(seed)
        self.own = RegressionStatistics(dictionary.d_in, 1, N_CELLS)
        self.independent = RegressionStatistics(dictionary.d_in, 1, N_CELLS)

    def update(self, codes: SparseCodes, cell: Int[Tensor, " rows"]) -> None:
        """Add the codes of some rows; the control deals them out within these rows."""
        scaled = codes.with_value(scaled_values(codes))
        plain = SparseCodes(scaled.row_pointer, scaled.latent, scaled.value, scaled.d_sae)
        dealt = torch.randint(codes.n_rows, (len(codes.latent),), generator=self._generator).to(
            codes.latent.device
        )
        shuffled = SparseCodes.from_pairs(
            dealt, plain.latent, plain.value, plain.n_rows, plain.d_sae
        )
        for statistics, these in ((self.own, plain), (self.independent, shuffled)):
            vectors = combine_latents(these, self._dictionary.W_dec).double().cpu()
            statistics.update(vectors, vectors.square().sum(1, keepdim=True), cell)


@dataclass(frozen=True, eq=False)
class DirectionFindings:
    """What the probe of the reconstruction's squared norm shows."""

    r_squared: float | None
    """Held-out R² of the squared norm of reconstructions on themselves."""
    independent_r_squared: float | None
    """The same with codes dealt out to random rows."""
    correlation_mean: float | None
    """Over live latents, correlation of probe · decoder row with the mean code when active."""
    correlation_cubic: float | None
    """The same with E[w³] / E[w²]."""
    inner_product: Float[Tensor, " alive"]
    """Probe · decoder row, latents by falling mean code."""
    mean_when_active: Float[Tensor, " alive"]
    cubic: Float[Tensor, " alive"]
    latent: Int[Tensor, " alive"]

    def values(self) -> dict[str, float | None]:
        """Every number by its metric name."""
        return {
            "directions_r_squared": self.r_squared,
            "directions_independent_r_squared": self.independent_r_squared,
            "directions_correlation_mean": self.correlation_mean,
            "directions_correlation_cubic": self.correlation_cubic,
        }

    def figure_data(self) -> dict[str, Any]:
        """For "probe_directions"."""
        return {
            "window": WINDOW,
            "n_latents": len(self.latent),
            "latent": self.latent[:MOST_POINTS].tolist(),
            "inner_product": _rounded(running_mean(self.inner_product[:MOST_POINTS])),
            "mean_when_active": _rounded(self.mean_when_active[:MOST_POINTS]),
            "cubic": _rounded(running_mean(self.cubic[:MOST_POINTS])),
            "correlation_mean": self.correlation_mean,
            "correlation_cubic": self.correlation_cubic,
        }


def direction_findings(
    dictionary: Dictionary, sums: ErrorSums, directions: DirectionSums, ridge: float
) -> DirectionFindings:
    """Fit both probes and compare the first with the latents.

    Raises:
        ActivationError: fewer rows than coefficients.
    """
    norm = torch.linalg.vector_norm(dictionary.W_dec.double().cpu(), dim=1)
    latents = sums.latents
    alive = ((latents.count > 0) & (norm > 0)).nonzero().flatten()
    mean = (latents.total / latents.count * norm)[alive]
    cubic = (latents.cube / latents.square * norm)[alive]
    what = "the squared norm of reconstructions from themselves"
    fitted = directions.own.moments(CONTEXT_TRAIN).fit(ridge=ridge, what=what)
    control = directions.independent.moments(CONTEXT_TRAIN).fit(ridge=ridge, what=what)
    unit = dictionary.W_dec.double().cpu()[alive] / norm[alive, None]
    product = unit @ fitted.weight.squeeze(1)
    order = mean.argsort(descending=True)
    return DirectionFindings(
        r_squared=directions.own.moments(CONTEXT_TEST).score(fitted).pooled_r_squared(),
        independent_r_squared=directions.independent.moments(CONTEXT_TEST)
        .score(control)
        .pooled_r_squared(),
        correlation_mean=correlation(product, mean),
        correlation_cubic=correlation(product, cubic),
        inner_product=product[order],
        mean_when_active=mean[order],
        cubic=cubic[order],
        latent=alive[order],
    )


def correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float | None:
    """Pearson correlation; None where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    below = float(a.norm() * b.norm())
    return float(a @ b) / below if below > 0 else None


def running_mean(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Mean over a window of `WINDOW` values, of fewer at the ends."""
    if len(values) == 0:
        return values
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    places = torch.arange(len(values))
    low = (places - WINDOW // 2).clamp(min=0)
    high = (places + WINDOW // 2).clamp(max=len(values))
    return (total[high] - total[low]) / (high - low)


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
