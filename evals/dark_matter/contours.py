"""Numbers over width and L0: linear interpolation between the dictionaries of a family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from saelab.errors import ConfigError
from saelab.formats.chart import Axis, Chart, Number, Series

from .analysis import width_axis
from .breakdown import Member
from .measure import meaning_of

CONTOURED = {
    "norm_r_squared": "R² of the squared error norm",
    "error_r_squared": "R² of the error vector",
    "fvu_nonlinear": "FVU of the nonlinear error",
}
"""Numbers drawn over width and L0, with their titles."""
GRID = 40
SAME_POINT = 1e-3
"""Points nearer than this share of the range are one point, with the mean of their values."""
SMALLEST_AREA = 1e-4
"""Triangles of less area, in units of the range, are slivers between points on one line."""

Floats = npt.NDArray[np.float64]


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
    low = np.array([x.min(), y.min()])
    scale = np.array([np.ptp(x) or 1.0, np.ptp(y) or 1.0])
    points, values = _merged((np.stack([x, y], axis=1) - low) / scale, values)
    triangles = _triangles(points)
    if len(triangles) == 0:
        raise ConfigError(
            f"contours need dictionaries at three places or more that do not lie on one line in "
            f"width and L0; these lie at {len(points)}: give several widths, each at several L0"
        )
    grid = np.stack(np.meshgrid(x_grid, y_grid), axis=-1)
    wanted = ((grid - low) / scale).reshape(-1, 2)
    surface = np.full(len(wanted), np.nan)
    for corners in triangles:
        weights = _barycentric(points[corners], wanted)
        inside = (weights >= -1e-9).all(axis=1) & np.isnan(surface)
        surface[inside] = weights[inside] @ values[corners]
    return surface.reshape(grid.shape[:2]), triangles


def contour_chart(members: Sequence[Member], metric: str) -> Chart:
    """A number over width and L0, between the dictionaries that have it.

    Raises:
        ConfigError: the dictionaries do not span a surface.
    """
    points = [(one, value) for one in members if (value := one.number(metric)) is not None]
    if not points:
        raise ConfigError(f"no dictionary has the number {metric!r} to be drawn over width and L0")
    x = np.log10([member.d_sae for member, _ in points])
    y = np.log10([max(member.l0, 1e-9) for member, _ in points])
    x_grid, y_grid = (np.linspace(axis.min(), axis.max(), GRID) for axis in (x, y))
    surface, _ = interpolate(x, y, np.array([value for _, value in points]), x_grid, y_grid)
    title = CONTOURED[metric]
    (best, largest), (worst, smallest) = (
        choose(points, key=lambda point: point[1]) for choose in (max, min)
    )
    return Chart(
        name=f"contour_{metric}",
        title=f"{title} over width and L0",
        caption=f"{meaning_of(metric).text} Linear interpolation between the dictionaries (dots) "
        "in log width and log L0; nothing is drawn outside their hull.",
        summary=f"{title}: largest {largest:.4f} at {best.d_sae:,} latents and L0 {best.l0:.3g}, "
        f"smallest {smallest:.4f} at {worst.d_sae:,} and {worst.l0:.3g}.",
        x=width_axis(),
        y=Axis(title="L0: active latents per row (log)", log=True),
        colour=title,
        series=(
            Series(
                name="interpolated",
                x=[round(value, 3) for value in (10**x_grid).tolist()],
                y=[float(f"{value:.6g}") for value in (10**y_grid).tolist()],
                z=[[_plain(value) for value in row] for row in surface.tolist()],
                mark="heat map",
            ),
            Series(
                name="dictionaries",
                x=[member.d_sae for member, _ in points],
                y=[member.l0 for member, _ in points],
                mark="dots",
                style=1,
                labels=[f"{member.name}: {value:.4f}" for member, value in points],
            ),
        ),
        height=420,
    )


def _merged(points: Floats, values: Floats) -> tuple[Floats, Floats]:
    groups: list[list[int]] = []
    for index, point in enumerate(points):
        for group in groups:
            if np.abs(points[group[0]] - point).max() < SAME_POINT:
                group.append(index)
                break
        else:
            groups.append([index])
    centres = np.array([points[group].mean(axis=0) for group in groups])
    return centres, np.array([values[group].mean() for group in groups])


def _triangles(points: Floats) -> npt.NDArray[np.int64]:
    """Delaunay triangles but for slivers; none where the points lie on one line."""
    from scipy.spatial import Delaunay, QhullError

    if len(points) < 3:
        return np.empty((0, 3), dtype=np.int64)
    try:
        corners = Delaunay(points).simplices.astype(np.int64)
    except QhullError:
        return np.empty((0, 3), dtype=np.int64)
    a, b, c = (points[corners[:, index]] for index in range(3))
    (bx, by), (cx, cy) = (b - a).T, (c - a).T
    return corners[np.abs(bx * cy - by * cx) >= 2 * SMALLEST_AREA]


def _barycentric(corners: Floats, points: Floats) -> Floats:
    matrix = np.stack([corners[1] - corners[0], corners[2] - corners[0]], axis=1)
    inner = np.linalg.solve(matrix, (points - corners[0]).T).T
    return np.concatenate([1 - inner.sum(axis=1, keepdims=True), inner], axis=1)


def _plain(value: float) -> Number | None:
    return None if np.isnan(value) else float(f"{value:.5g}")
