"""What the charts of several suites share: rounded numbers, thinned points, error bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.stats.spread import Spread


def rounded(values: Iterable[float] | Tensor, digits: int = 5) -> list[float]:
    """The values with a few significant digits, which keeps results small.

    Example:
        >>> rounded([0.1234567, 2.0])
        [0.12346, 2.0]
    """
    numbers = values.tolist() if isinstance(values, Tensor) else values
    return [float(f"{value:.{digits}g}") for value in numbers]


def evenly_chosen(indices: Int[Tensor, " n"], most: int) -> Int[Tensor, " shown"]:
    """The indices, or `most` of them at even distances where there are more."""
    if len(indices) <= most:
        return indices
    return indices[torch.arange(most, device=indices.device) * len(indices) // most]


def reached_by_half(x: Sequence[float], shares: Sequence[float]) -> float:
    """The largest x with a share of at least one half; 0 where there is none."""
    return max((at for at, share in zip(x, shares, strict=True) if share >= 0.5), default=0.0)


def error_bars(spreads: Iterable[Spread]) -> dict[str, Any]:
    """`low` and `high` of a series, one standard deviation from the mean; none without any."""
    known = [(spread.mean or 0.0, spread.sd) for spread in spreads]
    if all(sd is None for _, sd in known):
        return {}
    return {
        "low": [None if sd is None else mean - sd for mean, sd in known],
        "high": [None if sd is None else mean + sd for mean, sd in known],
    }
