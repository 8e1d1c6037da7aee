"""Numbers over width and L0: linear interpolation between the dictionaries of a family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from saelab.errors import ConfigError

from .breakdown import Member
from .scatter import interpolate

CONTOURED = ("norm_r_squared", "error_r_squared", "fvu_nonlinear")
LEVELS = 15
GRID = 60


def contour_data(members: Sequence[Member], metric: str) -> dict[str, Any]:
    """The grid of one number over log width and log L0.

    Raises:
        ConfigError: the dictionaries do not span a surface.
    """
    known = [(one, one.number(metric)) for one in members]
    points = [(one, value) for one, value in known if value is not None]
    if not points:
        raise ConfigError(f"no dictionary has the number {metric!r} to be drawn over width and L0")
    x = np.array([math.log10(one.d_sae) for one, _ in points])
    y = np.array([math.log10(max(one.l0, 1e-9)) for one, _ in points])
    z = np.array([value for _, value in points], dtype=np.float64)
    x_grid = np.linspace(x.min(), x.max(), GRID)
    y_grid = np.linspace(y.min(), y.max(), GRID)
    surface, _ = interpolate(x, y, z, x_grid, y_grid)
    return {
        "metric": metric,
        "levels": LEVELS,
        "width": [round(10**value, 3) for value in x_grid.tolist()],
        "l0": [float(f"{10**value:.6g}") for value in y_grid.tolist()],
        "surface": [[_plain(value) for value in row] for row in surface.tolist()],
        "points": [
            {"name": one.name, "width": one.d_sae, "l0": one.l0, "value": value}
            for one, value in points
        ],
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.5g}")
