"""What several dictionaries of one hook point show together: a result of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow

from saelab.errors import ConfigError
from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import Table

from .analysis import WIDTH_AXIS, Finding
from .breakdown import Breakdown, Member, break_down
from .downstream import PARTS
from .linear_error import FIRST_PASS
from .norm_test import VECTORS, norm_test_violins
from .suite import PURSUIT, SHOWN
from .tokens import family_traces, measure_scaling, scaling_charts

MOST_LINES = 12
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


@dataclass
class Family:
    """Charts, numbers and notes on several dictionaries."""

    members: list[Member]
    """From narrow to wide, and from few to many active latents."""
    numbers: dict[str, Finding]
    """Of the family as a whole, by name."""
    charts: list[Chart] = field(default_factory=list)
    """In reading order."""
    notes: list[str] = field(default_factory=list)
    """What could not be shown and why, in sentences."""

    def table(self) -> Table:
        """Every dictionary with the numbers that matter most."""
        names = [
            name
            for name in (*SHOWN, *(PURSUIT + name for name in SHOWN[:2]))
            if any(name in member.values for member in self.members)
        ]
        return Table(
            title="Every dictionary",
            columns=("dictionary", "latents", *(name.replace("_", " ") for name in names)),
            rows=tuple(
                (member.name, member.d_sae, *(member.values.get(name) for name in names))
                for member in self.members
            ),
        )

    def rows(self) -> dict[str, Any]:
        """Every number of every dictionary, as columns."""
        members = self.members
        names = dict.fromkeys(name for member in members for name in member.values)
        return {
            "name": [member.name for member in members],
            "d_sae": [member.d_sae for member in members],
            **{
                name: pyarrow.array([m.values.get(name) for m in members], pyarrow.float64())
                for name in names
            },
        }


def family_of(members: Sequence[Member], *, breakdown_l0: float | None, ridge: float) -> Family:
    """Run every analysis that compares dictionaries; what is not possible becomes a note."""
    members = sorted(members, key=lambda member: (member.d_sae, member.l0, member.name))
    count = Finding(len(members), "Dictionaries held side by side.", "dictionaries")
    family = Family(members, {"n_dictionaries": count})
    compared = _add_breakdown(family, breakdown_l0)
    shown = members if compared is None else compared.members
    shown = shown[:: -(-len(shown) // MOST_LINES)]
    paths, labels = [member.token_file for member in shown], _labels(shown)
    if len(shown) > 1:
        family.charts += scaling_charts(*measure_scaling(paths, ridge), labels)
    for metric in CONTOURED:
        try:
            family.charts.append(contour_chart(members, metric))
        except ConfigError as error:
            family.notes.append(f"No contours over width and L0: {error}.")
            break
    spliced = [m for m in members if m.number("downstream_recovered_ce_linear") is not None]
    if spliced:
        family.charts.append(_recovery_chart(spliced))
    norms = {name: [member.number(f"norm_test_{name}") for member in members] for name in VECTORS}
    if any(value is not None for value in norms["error"]):
        family.charts.append(norm_test_violins(norms))
    if len(shown) > 1:
        family.charts += family_traces(labels, paths)
    return family


def _add_breakdown(family: Family, l0: float | None) -> Breakdown | None:
    try:
        compared = break_down(family.members, l0)
    except ConfigError as error:
        family.notes.append(f"No breakdown over width: {error}.")
        return None
    family.notes += [f"Left out of the breakdown over width: {text}." for text in compared.left_out]
    if compared.refused is not None:
        family.notes.append(f"In the breakdown over width {compared.refused}.")
    family.charts += compared.charts()
    nonlinear = "Mean FVU_nonlinear over the widths compared."
    family.numbers |= {
        "breakdown_l0": Finding(compared.l0, "L0 at which widths are compared.", "latents per row"),
        "mean_fvu_nonlinear": Finding(compared.mean_nonlinear, nonlinear),
    }
    if (fit := compared.fit) is not None:
        interval = "end of the 95 % profile interval of c."
        family.numbers |= {
            "asymptote": Finding(fit.c, "c of the fit FVU = c + a M^-m over widths M (E13, E14)."),
            "asymptote_low": Finding(fit.c_low, f"Lower {interval}"),
            "asymptote_high": Finding(fit.c_high, f"Upper {interval}"),
            "exponent": Finding(fit.m, "m of the fit."),
            "fit_residual": Finding(fit.rms, "Root mean square residual of the fit."),
        }
    return compared


def _labels(members: Sequence[Member]) -> list[str]:
    """Width, with the L0 or the name where widths repeat."""
    by_width = [f"{member.d_sae:,}" for member in members]
    with_l0 = [f"{member.d_sae:,}, L0 {member.l0:.3g}" for member in members]
    names = [member.name for member in members]
    for labels in (by_width, with_l0, names):
        if len(set(labels)) == len(members):
            return labels
    return [f"{index + 1}: {name}" for index, name in enumerate(names)]


def contour_chart(members: Sequence[Member], metric: str) -> Chart:
    """A number over width and L0, between the dictionaries that have it.

    Raises:
        ConfigError: the dictionaries do not span a surface.
    """
    points = [(member, value) for member in members if (value := member.number(metric)) is not None]
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
        caption=f"{FIRST_PASS[metric]} Linear interpolation between the dictionaries (dots) "
        "in log width and log L0; nothing is drawn outside their hull.",
        summary=f"{title}: largest {largest:.4f} at {best.d_sae:,} latents and L0 {best.l0:.3g}, "
        f"smallest {smallest:.4f} at {worst.d_sae:,} and {worst.l0:.3g}.",
        x=WIDTH_AXIS,
        y=Axis(title="L0: active latents per row (log)", log=True),
        colour=title,
        series=(
            Series(
                name="interpolated",
                x=[round(value, 3) for value in (10**x_grid).tolist()],
                y=[float(f"{value:.6g}") for value in (10**y_grid).tolist()],
                z=[
                    [None if np.isnan(value) else float(f"{value:.5g}") for value in row]
                    for row in surface
                ],
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


def interpolate(
    x: Floats, y: Floats, values: Floats, x_grid: Floats, y_grid: Floats
) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Values on a grid, linear within each triangle of the points; NaN outside their hull.

    Returns:
        The values [len(y_grid), len(x_grid)], and the triangles as indices of merged points.

    Raises:
        ConfigError: the points lie on one line, or are fewer than three.
    """
    from scipy.cluster.hierarchy import fclusterdata
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import Delaunay, QhullError

    low = np.array([x.min(), y.min()])
    scale = np.array([np.ptp(x) or 1.0, np.ptp(y) or 1.0])
    points = (np.stack([x, y], axis=1) - low) / scale
    if len(points) > 1:
        group = fclusterdata(points, SAME_POINT, criterion="distance", metric="chebyshev")
        merged = [group == index for index in dict.fromkeys(group.tolist())]
        points, values = (
            np.array([column[chosen].mean(axis=0) for chosen in merged])
            for column in (points, values)
        )
    try:
        mesh = Delaunay(points)
        corners = points[mesh.simplices]
        area = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / 2
        if area.max() < SMALLEST_AREA:
            raise ValueError("slivers only")
    except (QhullError, ValueError):
        raise ConfigError(
            f"contours need dictionaries at three places or more that do not lie on one line in "
            f"width and L0; these lie at {len(points)}: give several widths, each at several L0"
        ) from None
    grid = np.stack(np.meshgrid(x_grid, y_grid), axis=-1)
    surface = LinearNDInterpolator(mesh, values)((grid - low) / scale)
    return surface, mesh.simplices[area >= SMALLEST_AREA]


def _recovery_chart(members: Sequence[Member]) -> Chart:
    """What adding a part of the error recovers, by loss, by R² and by norm."""
    measures = {
        "recovered_ce": "loss recovered",
        "recovered_r_squared": "R² recovered",
        "norm_share": "share of the norm",
    }
    return Chart(
        name="family_recovery",
        title="What each part of the error is worth to the model",
        caption="Per cent of what the reconstruction loses that adding the linear error (plain) or "
        "the nonlinear error (hatched) takes back: of the next-token loss, of R², and beside them "
        "the mean norm of the part over that of the error. The two parts need not add up to 100.",
        x=Axis(title="dictionary"),
        y=Axis(title="per cent"),
        series=tuple(
            Series(
                name=f"{text}, + {part}",
                x=[*_labels(members)],
                y=[member.number(f"downstream_{name}_{part}") for member in members],
                mark="bars",
                style=index,
                dashed=part == "nonlinear",
            )
            for part in PARTS
            for index, (name, text) in enumerate(measures.items())
        ),
        height=420,
        wide=True,
    )
