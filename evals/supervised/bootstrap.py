"""Confidence intervals by resampling prompts.

Every score of the suite is a function of means over prompts, such as the ratio of two mean logit
differences. A resample draws as many prompts as there are, with replacement; the same draws serve
all the columns of a score, so that ratios and differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LEVEL = 0.95
"""Coverage that the intervals aim at."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its interval; None where it is undefined."""

    value: float | int | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | int | None]:
        """As plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


UNDEFINED = Estimate(value=None, low=None, high=None)


class Bootstrap:
    """The resamples of a set of prompts.

    Args:
        n_prompts: prompts that every score is over.
        n_resamples: draws of them.
        seed: of the draws.
    """

    def __init__(self, n_prompts: int, n_resamples: int = 1000, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        shares = torch.zeros(n_resamples, n_prompts, dtype=torch.float64)
        ones = torch.full((n_prompts,), 1 / max(1, n_prompts), dtype=torch.float64)
        for resample in shares:
            drawn = torch.randint(n_prompts, (n_prompts,), generator=generator)
            resample.index_add_(0, drawn, ones)
        self._shares = shares

    def estimate(
        self,
        columns: Float[Tensor, "prompts quantities"],
        score: Callable[[Float[Tensor, "... quantities"]], Float[Tensor, "..."]] | None = None,
    ) -> Estimate:
        """A score and its 95 % percentile interval.

        Args:
            columns: per-prompt numbers; NaN leaves a prompt out of that column's mean.
            score: from the columns' means (last axis) to the score; None: the first column's mean.
        """
        columns = columns.double().cpu()
        known = ~columns.isnan()
        filled = torch.where(known, columns, 0.0)
        means = filled.sum(0) / known.sum(0)
        resampled = (self._shares @ filled) / (self._shares @ known.double())
        of = score if score is not None else lambda means: means[..., 0]
        value = float(of(means))
        spread = of(resampled)
        spread = spread[spread.isfinite()]
        if not torch.isfinite(torch.tensor(value)):
            return UNDEFINED
        if len(spread) == 0:
            return Estimate(value=value, low=None, high=None)
        ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
        low, high = spread.quantile(ends).tolist()
        return Estimate(value=value, low=low, high=high)


def over_seeds(values: list[float | int | None]) -> dict[str, float | int | None]:
    """Mean and standard deviation (n − 1) of a score over seeds; undefined ones are left out."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    deviation = None
    if mean is not None and len(known) > 1:
        deviation = (sum((value - mean) ** 2 for value in known) / (len(known) - 1)) ** 0.5
    return {"n_seeds": len(known), "mean": mean, "standard_deviation": deviation}
