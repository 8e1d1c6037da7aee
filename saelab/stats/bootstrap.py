"""Confidence intervals by resampling, such as of the prompts a score is a mean over.

A score is a function of means over items, for example the ratio of two mean logit differences. A
resample draws as many items as there are, with replacement; the same draws serve all the columns
of a score, so that ratios and differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .spread import quantiles

LEVEL = 0.95
"""Coverage that the intervals aim at."""
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its interval; None where it is undefined."""

    value: float | int | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | int | None]:
        """As plain JSON values."""
        return dict(vars(self))


UNDEFINED = Estimate(value=None, low=None, high=None)


class Bootstrap:
    """The resamples of a set of items.

    Args:
        n_items: items that every score is over, such as prompts.
        n_resamples: draws of them.
    """

    def __init__(self, n_items: int, n_resamples: int = 1000, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        shares = torch.zeros(n_resamples, n_items, dtype=torch.float64)
        ones = torch.full((n_items,), 1 / max(1, n_items), dtype=torch.float64)
        for resample in shares:
            drawn = torch.randint(n_items, (n_items,), generator=generator)
            resample.index_add_(0, drawn, ones)
        self._shares = shares

    def estimate(
        self,
        columns: Float[Tensor, "items quantities"],
        score: Callable[[Float[Tensor, "... quantities"]], Float[Tensor, "..."]] | None = None,
    ) -> Estimate:
        """A score and its 95 % percentile interval.

        Args:
            columns: numbers per item; NaN leaves an item out of that column's mean.
            score: from the columns' means (last axis) to the score; None: the first column's mean.
        """
        columns = columns.double().cpu()
        known = ~columns.isnan()
        filled = torch.where(known, columns, 0.0)
        means = filled.sum(0) / known.sum(0)
        resampled = (self._shares @ filled) / (self._shares @ known.double())
        of = score if score is not None else lambda means: means[..., 0]
        value, scores = float(of(means)), of(resampled)
        if not math.isfinite(value):
            return UNDEFINED
        scores = scores[scores.isfinite()]
        low, high = quantiles(scores, ENDS) if len(scores) else (None, None)
        return Estimate(value=value, low=low, high=high)


def difference_interval(
    first: Float[Tensor, " n"],
    second: Float[Tensor, " m"],
    *,
    n_resamples: int,
    generator: torch.Generator,
) -> tuple[float, float]:
    """95 % interval of mean(first) − mean(second); both samples are drawn again each time."""

    def means(values: Tensor) -> Tensor:
        drawn = torch.randint(len(values), (n_resamples, len(values)), generator=generator)
        return values.double().cpu()[drawn].mean(dim=1)

    low, high = quantiles(means(first) - means(second), ENDS)
    return low, high
