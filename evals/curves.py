"""Curves over latents: shares above a threshold among the most active, shares by cosine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CURVE_POINTS = 48
COSINES = [round(0.02 * step, 2) for step in range(51)]
"""Where curves over cosines are evaluated."""


def n_top(fraction: float, n_alive: int) -> int:
    """How many latents a fraction of the alive ones is: rounded, at least one."""
    return min(max(round(fraction * n_alive), 1), n_alive)


def fractions_for(n_alive: int) -> list[float]:
    """Fractions for a curve, equal in log from one latent to all."""
    exponents = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64)
    counts = sorted({round(n_alive**exponent) for exponent in exponents.tolist()})
    return [count / n_alive for count in counts]


def share_above(
    values: Float[Tensor, " alive"],
    order: Int[Tensor, " alive"],
    threshold: float,
    fractions: Sequence[float],
) -> list[float]:
    """Share of values above the threshold among the first latents of an order, per fraction."""
    above = (values[order] > threshold).double().cumsum(0)
    tops = [n_top(fraction, len(values)) for fraction in fractions]
    return [float(above[top - 1]) / top for top in tops]


def share_at_least(values: Float[Tensor, " n"], cosines: Sequence[float]) -> list[float]:
    """Share of values at or above each cosine."""
    ordered = values.sort().values
    edges = torch.tensor(cosines, dtype=values.dtype, device=values.device)
    at_least = len(values) - torch.searchsorted(ordered, edges)
    return (at_least.double() / len(values)).tolist()


def mean_above(
    values: Sequence[Float[Tensor, " _"]],
    orders: Sequence[Int[Tensor, " _"]],
    threshold: float,
    fractions: Sequence[float],
) -> list[Any]:
    """The mean of several dictionaries' `share_above`, point by point."""
    pairs = zip(values, orders, strict=True)
    return _mean([share_above(each, order, threshold, fractions) for each, order in pairs])


def mean_at_least(values: Sequence[Float[Tensor, " _"]]) -> list[Any]:
    """The mean of several dictionaries' `share_at_least` each of `COSINES`, point by point."""
    return _mean([share_at_least(each, COSINES) for each in values])


def _mean(curves: Sequence[Sequence[float]]) -> list[Any]:
    return [sum(points) / len(points) for points in zip(*curves, strict=True)]


def reached_by_half(shares: Sequence[float]) -> float:
    """The largest of `COSINES` with a share of at least one half; 0 where there is none."""
    return max((at for at, share in zip(COSINES, shares, strict=True) if share >= 0.5), default=0.0)
