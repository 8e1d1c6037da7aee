"""Linear interpolation of values at scattered points, for contours over width and L0.

A Delaunay triangulation of few points by its definition: three points make a triangle if no other
lies within the circle through them.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

from saelab.errors import ConfigError

Floats = npt.NDArray[np.float64]
SAME_PLACE = 1e-3
"""Points nearer than this share of the range are one point, with the mean of their values."""
SMALLEST_AREA = 1e-4
"""Triangles of less area, in units of the range, are slivers between points on one line."""


def interpolate(
    x: Floats, y: Floats, values: Floats, x_grid: Floats, y_grid: Floats
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Values on a grid, linear within each triangle of the points; NaN outside their hull.

    Args:
        x: first coordinate of each point.
        y: second coordinate.
        values: at each point.
        x_grid: where to interpolate along x.
        y_grid: where to interpolate along y.

    Returns:
        The values [len(y_grid), len(x_grid)], and the triangles as indices of merged points.

    Raises:
        ConfigError: the points lie on one line, or are fewer than three.
    """
    scale_x, scale_y = np.ptp(x) or 1.0, np.ptp(y) or 1.0
    points = np.stack([(x - x.min()) / scale_x, (y - y.min()) / scale_y], axis=1)
    points, values = _merged(points, values)
    triangles = _triangles(points)
    if len(triangles) == 0:
        raise ConfigError(
            f"contours need dictionaries at three places or more that do not lie on one line in "
            f"width and L0; these lie at {len(points)}: give several widths, each at several L0"
        )
    grid_x, grid_y = np.meshgrid((x_grid - x.min()) / scale_x, (y_grid - y.min()) / scale_y)
    wanted = np.stack([grid_x.ravel(), grid_y.ravel()], axis=1)
    found = np.full(len(wanted), np.nan)
    for corners in triangles:
        weights = _barycentric(points[corners], wanted)
        inside = (weights >= -1e-9).all(axis=1) & np.isnan(found)
        found[inside] = weights[inside] @ values[corners]
    return found.reshape(grid_x.shape), triangles


def _merged(points: Floats, values: Floats) -> tuple[Floats, Floats]:
    kept: list[list[int]] = []
    for place, point in enumerate(points):
        for group in kept:
            if np.abs(points[group[0]] - point).max() < SAME_PLACE:
                group.append(place)
                break
        else:
            kept.append([place])
    centres = np.array([points[group].mean(axis=0) for group in kept])
    return centres, np.array([values[group].mean() for group in kept])


def _triangles(points: Floats) -> npt.NDArray[np.int64]:
    """Delaunay triangles; a tiny fixed displacement decides between diagonals of a rectangle."""
    n = len(points)
    moved = points + 1e-6 * np.random.default_rng(0).standard_normal(points.shape)
    corners = np.array(list(combinations(range(n), 3)), dtype=np.int64).reshape(-1, 3)
    if len(corners) == 0:
        return corners
    a, b, c = (moved[corners[:, place]] for place in range(3))
    (bx, by), (cx, cy) = (b - a).T, (c - a).T
    twice_area = bx * cy - by * cx
    flat = np.abs(twice_area) < 2 * SMALLEST_AREA
    corners, a = corners[~flat], a[~flat]
    bx, by, cx, cy = bx[~flat], by[~flat], cx[~flat], cy[~flat]
    below = 2 * twice_area[~flat]
    centre = np.stack(
        [
            (cy * (bx**2 + by**2) - by * (cx**2 + cy**2)) / below,
            (bx * (cx**2 + cy**2) - cx * (bx**2 + by**2)) / below,
        ],
        axis=1,
    )
    radius = (centre**2).sum(axis=1)
    distance = ((moved[None] - (a + centre)[:, None]) ** 2).sum(axis=2)
    distance[np.arange(len(corners))[:, None], corners] = np.inf
    return corners[(distance > radius[:, None] * (1 - 1e-12)).all(axis=1)]


def _barycentric(corners: Floats, points: Floats) -> Floats:
    matrix = np.stack([corners[1] - corners[0], corners[2] - corners[0]], axis=1)
    inner = np.linalg.solve(matrix, (points - corners[0]).T).T
    return np.concatenate([1 - inner.sum(axis=1, keepdims=True), inner], axis=1)
