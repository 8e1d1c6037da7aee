"""A quantity that falls with width as c + a M^-m, and what the points say about the asymptote c.

For given c the best a is in closed form and the best m is found by bounded search, so the fit is
deterministic: descending from random starts ends in a bad minimum now and then. The asymptote is
weakly identified: seven published points are fitted at c = 0.189 with a residual of 0.0027 and at
c = 0 with 0.0050. So the fit comes with the profile of its residual over c and with an interval:
the c whose best fit is not worse than the optimum by more than an F-test at 95 % allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saelab.errors import ConfigError

from .spread import t_quantile

FEWEST_WIDTHS = 4
"""Three parameters go through any three points."""
STEEPEST = 8.0
"""Largest exponent m that is searched."""
PROFILE_POINTS = 81

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
    """Upper end; never above the smallest value."""
    profile_c: Floats
    """Values of c of the profile, from 0 to the smallest value."""
    profile_rms: Floats
    """Root mean square residual of the best fit at each."""

    def at(self, widths: Floats) -> Floats:
        """The fitted value at some widths."""
        return self.c + self.a * widths**-self.m


def fit_power_law(widths: Floats, values: Floats) -> PowerLaw:
    """Fit c + a M^-m with c, a, m ≥ 0 by least squares.

    Args:
        widths: M, such as the number of latents of each dictionary.
        values: of each, such as its FVU.

    Raises:
        ConfigError: fewer than `FEWEST_WIDTHS` different widths.

    Example:
        >>> widths = np.array([512.0, 1024.0, 2048.0, 4096.0, 8192.0])
        >>> round(fit_power_law(widths, 0.1 + 3 * widths**-0.5).m, 4)
        0.5
    """
    widths, values = np.asarray(widths, np.float64), np.asarray(values, np.float64)
    n_widths = len(np.unique(widths))
    if n_widths < FEWEST_WIDTHS:
        raise ConfigError(
            f"a power law over widths has three parameters and {n_widths} "
            f"width{'' if n_widths == 1 else 's'} cannot determine them: give dictionaries of at "
            f"least {FEWEST_WIDTHS} widths at the same L0"
        )

    def error_at(c: float) -> float:
        return _best_exponent(widths, values, c)[1]

    smallest, n = float(values.min()), len(values)
    grid = np.linspace(0.0, smallest, PROFILE_POINTS)
    profile = np.array([error_at(c) for c in grid])
    c = _minimum(error_at, grid, profile)
    m, error = _best_exponent(widths, values, c)
    freedom = n - 3
    # Points that a power law fits exactly leave rounding behind; t² is F(1, ν).
    allowed = max(error, 1e-24) * (1 + t_quantile(freedom) ** 2 / freedom)
    return PowerLaw(
        c=c,
        a=float(_factor_and_error(widths, values, c, np.array([m]))[0][0]),
        m=m,
        rms=math.sqrt(error / n),
        c_low=_edge(lambda value: error_at(value) - allowed, c, 0.0),
        c_high=_edge(lambda value: error_at(value) - allowed, c, smallest),
        profile_c=grid,
        profile_rms=np.sqrt(profile / n),
    )


def _factor_and_error(widths: Floats, values: Floats, c: float, m: Floats) -> tuple[Floats, Floats]:
    """Of each exponent m, the best factor and the summed squared error."""
    power = widths ** -m[:, None]
    factor = np.maximum(0.0, power @ (values - c) / np.square(power).sum(axis=1))
    return factor, np.square(values - c - factor[:, None] * power).sum(axis=1)


def _best_exponent(widths: Floats, values: Floats, c: float) -> tuple[float, float]:
    """The exponent with the smallest summed squared error at a given c, and that error."""

    def error_of(m: float) -> float:
        return float(_factor_and_error(widths, values, c, np.array([m]))[1][0])

    grid = np.concatenate([[0.0], np.geomspace(1e-3, STEEPEST, 60)])
    m = _minimum(error_of, grid, _factor_and_error(widths, values, c, grid)[1])
    return m, error_of(m)


def _minimum(function: Callable[[float], float], grid: Floats, values: Floats) -> float:
    """The minimum between the neighbours of the best grid point, or that point."""
    from scipy.optimize import minimize_scalar

    best = int(values.argmin())
    bounds = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)]))
    if bounds[0] == bounds[1]:
        return bounds[0]
    minimum: Any = minimize_scalar(
        function, bounds=bounds, method="bounded", options={"xatol": 1e-9 * max(bounds[1], 1e-6)}
    )
    return float(minimum.x) if minimum.fun <= values[best] else float(grid[best])


def _edge(excess: Callable[[float], float], start: float, end: float) -> float:
    """Where `excess`, not positive at the start, turns positive on the way to the end, or the
    end."""
    from scipy.optimize import brentq

    if start == end or excess(end) <= 0:
        return end
    if excess(start) >= 0:
        return start
    edge: Any = brentq(excess, start, end, xtol=1e-12)
    return float(edge)
