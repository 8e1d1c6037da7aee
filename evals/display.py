"""How suites show numbers: spreads as text, rounded values, thinned points, error bars."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.stats.bootstrap import Estimate
from saelab.stats.spread import Spread

PLUS_MINUS = "\u00a0±\u00a0"
"""Between a mean and its deviation, which no line break may part."""


def written(spread: Spread, decimals: int | None = None, *, signed: bool = False) -> str:
    """A spread as text: "0.1346 ± 0.0005", "0.1346 ± —" of one seed, "—" of none.

    Args:
        decimals: of both; None: such that the mean has four significant digits.
        signed: whether a positive mean has a sign.

    Example:
        >>> written(Spread(0.13462, 0.00051, 3))
        '0.1346\xa0±\xa00.0005'
    """
    if spread.mean is None:
        return "—"
    decimals = decimals_for(spread.mean) if decimals is None else decimals
    mean = f"{spread.mean:{'+' if signed else ''},.{decimals}f}"
    if spread.sd is None:
        return f"{mean}{PLUS_MINUS}—"
    sd = f"{spread.sd:,.{decimals}f}"
    # A deviation below the last decimal is shown by itself, so that it does not read as none.
    if spread.sd > 0 and float(sd.replace(",", "")) == 0:
        sd = f"{spread.sd:.1g}"
    return f"{mean}{PLUS_MINUS}{sd}"


def bracketed(estimate: Estimate, decimals: int) -> str:
    """An interval as text behind a number: " [0.957, 0.966]"; nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"


def shorter(mean: float | None) -> str:
    """A mean alone, with three significant digits."""
    return "—" if mean is None else f"{mean:,.{decimals_for(mean, 3)}f}"


def percent(mean: float | None) -> str:
    """A mean share alone, in percent."""
    return "—" if mean is None else f"{mean:.1%}"


def decimals_for(value: float, digits: int = 4) -> int:
    """Decimals that show a value with a number of significant digits, at most six."""
    if value == 0 or not math.isfinite(value):
        return digits - 1
    return min(6, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


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


def error_bars(spreads: Iterable[Spread]) -> dict[str, Any]:
    """`low` and `high` of a series, one standard deviation from the mean; none without any."""
    known = [(spread.mean or 0.0, spread.sd) for spread in spreads]
    if all(sd is None for _, sd in known):
        return {}
    return {
        "low": [None if sd is None else mean - sd for mean, sd in known],
        "high": [None if sd is None else mean + sd for mean, sd in known],
    }
