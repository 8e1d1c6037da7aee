"""Means and standard deviations over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """What a number is over seeds."""

    mean: float | None
    """Mean over the seeds that have the number; None where none has."""
    sd: float | None
    """Sample standard deviation; None for fewer than two seeds."""
    n: int
    """Seeds that have the number."""


def spread_of(values: Iterable[float | None]) -> Spread:
    """Mean and sample standard deviation (n − 1) of the values that are not None."""
    known = [value for value in values if value is not None]
    if not known:
        return Spread(None, None, 0)
    mean = math.fsum(known) / len(known)
    if len(known) < 2:
        return Spread(mean, None, 1)
    if min(known) == max(known):
        # Exactly none, where the mean's rounding would leave a trace.
        return Spread(known[0], 0.0, len(known))
    squares = math.fsum((value - mean) ** 2 for value in known)
    return Spread(mean, math.sqrt(squares / (len(known) - 1)), len(known))


PLUS_MINUS = "\u00a0±\u00a0"
"""Between a mean and its deviation, which no line break may part."""


def written(spread: Spread, decimals: int | None = None, *, signed: bool = False) -> str:
    """A spread as text: "0.1346 ± 0.0005", "0.1346 ± —" of one seed, "—" of none.

    Args:
        spread: mean and deviation.
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
