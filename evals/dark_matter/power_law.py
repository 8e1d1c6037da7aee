"""FVU against width as c + a M^-m, with what the points say about the asymptote c.

The fit is exact and draws nothing: for given c and m the best a is in closed form, and c and m are
searched on grids that are refined around the best cell. (The authors' code descends from random
starts without a seed; two of eight end in a bad minimum.) The asymptote is weakly identified: seven
published points are fitted at c = 0.189 with a residual of 0.0027 and at c = 0 with 0.0050. So the
fit comes with the profile of its residual over c and with an interval: the c whose best fit is not
worse than the optimum by more than an F-test at 95 % allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saelab.errors import ConfigError

FEWEST_WIDTHS = 4
"""Three parameters go through any three points."""
STEEPEST = 8.0
"""Largest exponent m that is searched."""
PROFILE_POINTS = 81
STUDENT_T = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
)
"""Two-sided 95 % quantiles of Student's t with 1, 2, … degrees of freedom; t² is F(1, ν)."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """The fit c + a M^-m, and how sure its asymptote is."""

    c: float
    """Asymptote."""
    a: float
    """Factor."""
    m: float
    """Exponent."""
    rms: float
    """Root mean square residual."""
    c_low: float
    """Lower end of the 95 % profile interval of c; never below 0."""
    c_high: float
    """Upper end; never above the smallest FVU."""
    profile_c: Floats
    """Values of c of the profile, from 0 to the smallest FVU."""
    profile_rms: Floats
    """Root mean square residual of the best fit at each."""

    def at(self, widths: Floats) -> Floats:
        """The fitted FVU at some widths."""
        return self.c + self.a * widths**-self.m

    def figure_data(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "c": self.c,
            "a": self.a,
            "m": self.m,
            "rms": self.rms,
            "c_low": self.c_low,
            "c_high": self.c_high,
            "profile_c": self.profile_c.tolist(),
            "profile_rms": self.profile_rms.tolist(),
        }


def fit_power_law(widths: Floats, fvu: Floats) -> PowerLaw:
    """Fit c + a M^-m with c, a, m ≥ 0 by least squares.

    Args:
        widths: number of latents of each dictionary.
        fvu: of each.

    Raises:
        ConfigError: fewer than `FEWEST_WIDTHS` different widths.
    """
    widths, fvu = np.asarray(widths, dtype=np.float64), np.asarray(fvu, dtype=np.float64)
    n_widths = len(np.unique(widths))
    if n_widths < FEWEST_WIDTHS:
        raise ConfigError(
            f"a power law over widths has three parameters and {n_widths} "
            f"width{'' if n_widths == 1 else 's'} cannot determine them: give dictionaries of at "
            f"least {FEWEST_WIDTHS} widths at the same L0"
        )
    smallest = float(fvu.min())
    grid = np.linspace(0.0, smallest, PROFILE_POINTS)
    profile = np.array([_best_exponent(widths, fvu, c)[1] for c in grid])
    c = _refine(lambda value: _best_exponent(widths, fvu, value)[1], grid, profile)
    m, error = _best_exponent(widths, fvu, c)
    low, high = _interval(widths, fvu, c, error, smallest)
    n = len(fvu)
    return PowerLaw(
        c=c,
        a=_best_factor(widths, fvu, c, m),
        m=m,
        rms=math.sqrt(error / n),
        c_low=low,
        c_high=high,
        profile_c=grid,
        profile_rms=np.sqrt(profile / n),
    )


def _best_factor(widths: Floats, fvu: Floats, c: float, m: float) -> float:
    power = widths**-m
    return max(0.0, float(((fvu - c) @ power) / (power @ power)))


def _error(widths: Floats, fvu: Floats, c: float, m: float) -> float:
    residual = fvu - c - _best_factor(widths, fvu, c, m) * widths**-m
    return float(residual @ residual)


def _best_exponent(widths: Floats, fvu: Floats, c: float) -> tuple[float, float]:
    """The exponent with the smallest summed squared error at a given c, and that error."""
    grid = np.concatenate([[0.0], np.geomspace(1e-3, STEEPEST, 60)])
    errors = np.array([_error(widths, fvu, c, m) for m in grid])
    m = _refine(lambda value: _error(widths, fvu, c, value), grid, errors)
    return m, _error(widths, fvu, c, m)


def _refine(function: Any, grid: Floats, values: Floats) -> float:
    """Golden-section search between the neighbours of the best grid point."""
    best = int(values.argmin())
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    middle = (low + high) / 2
    return middle if function(middle) <= values[best] else float(grid[best])


def _interval(
    widths: Floats, fvu: Floats, c: float, error: float, smallest: float
) -> tuple[float, float]:
    """Where the profile of the error stays below what an F-test of one parameter allows."""
    freedom = len(fvu) - 3
    quantile = STUDENT_T[freedom - 1] if freedom <= len(STUDENT_T) else 1.96
    # Points that a power law fits exactly leave rounding behind.
    allowed = max(error, 1e-24) * (1 + quantile**2 / freedom)

    def inside(value: float) -> bool:
        return _best_exponent(widths, fvu, value)[1] <= allowed

    return _edge(inside, c, 0.0), _edge(inside, c, smallest)


def _edge(inside: Any, start: float, end: float) -> float:
    """Where `inside`, true at the start, turns false on the way to the end; else the end."""
    if inside(end):
        return end
    for _ in range(30):
        middle = (start + end) / 2
        if inside(middle):
            start = middle
        else:
            end = middle
    return start
