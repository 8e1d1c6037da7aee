"""Several numbers in a few: mean and spread over seeds, quantiles, correlations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """What a number is over seeds."""

    mean: float | None
    """Mean over the seeds that have the number; None where none has."""
    sd: float | None
    """Sample standard deviation (n − 1); None for fewer than two seeds."""
    n: int
    """Seeds that have the number."""


def spread_of(values: Iterable[float | None]) -> Spread:
    """Mean and sample standard deviation of the values that are not None.

    Example:
        >>> spread_of([1.0, None, 3.0])
        Spread(mean=2.0, sd=1.4142135623730951, n=2)
    """
    known = [value for value in values if value is not None]
    if not known:
        return Spread(None, None, 0)
    if min(known) == max(known):
        # Exactly none, where the mean's rounding would leave a trace.
        return Spread(known[0], 0.0 if len(known) > 1 else None, len(known))
    mean = math.fsum(known) / len(known)
    squares = math.fsum((value - mean) ** 2 for value in known)
    return Spread(mean, math.sqrt(squares / (len(known) - 1)), len(known))


def t_quantile(degrees_of_freedom: int | float, level: float = 0.95) -> float:
    """The two-sided quantile of Student's t: within ± it is a share `level`.

    Example:
        >>> round(t_quantile(25), 4)
        2.0595
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + level) / 2))


def quantiles(values: Float[Tensor, " n"], shares: Sequence[float]) -> list[float]:
    """Quantiles of any number of values, linear between neighbours; NaN where there are none."""
    if len(values) == 0:
        return [math.nan] * len(shares)
    return np.quantile(values.detach().double().cpu().numpy(), shares).tolist()


def pearson(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float | None:
    """Pearson correlation in float64; None where one of them does not vary.

    Example:
        >>> round(pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])), 6)
        1.0
    """
    if len(first) == 0:
        return None
    a, b = (values.double() - values.double().mean() for values in (first, second))
    scale = float(a.norm() * b.norm())
    return min(1.0, max(-1.0, float(a @ b) / scale)) if scale > 0 else None
