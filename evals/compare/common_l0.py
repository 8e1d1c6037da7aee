"""Methods held against one another at the same measured L0, by interpolation, never beyond.

Methods do not meet a target L0 exactly, and a curve of FVU against L0 is steep: equal targets are
not equal sparsity. Between the points of one seed, a number is taken to be linear in log L0.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .spread import Spread, spread_of

Points = Sequence[tuple[float, float]]
"""(measured L0, value) of the dictionaries of one seed, one per target L0."""


def interpolate(points: Points, l0: float) -> float | None:
    """The value at an L0, piecewise linear in log L0; None outside the range of the points.

    Points of equal L0 count as one with the mean of their values. Points of L0 zero are left out:
    they have no logarithm.
    """
    merged: dict[float, list[float]] = {}
    for place, value in points:
        if place > 0:
            merged.setdefault(place, []).append(value)
    places = sorted(merged)
    if not places or not places[0] <= l0 <= places[-1]:
        return None
    values = [math.fsum(merged[place]) / len(merged[place]) for place in places]
    left = bisect_right(places, l0) - 1
    if places[left] == l0:
        return values[left]
    low, high = math.log(places[left]), math.log(places[left + 1])
    share = (math.log(l0) - low) / (high - low)
    return values[left] + share * (values[left + 1] - values[left])


@dataclass(frozen=True)
class AtCommonL0:
    """One method, width and metric at one L0."""

    label: str
    d_sae: int
    metric: str
    l0: float
    value: Spread
    """Over the seeds whose points reach this L0 from both sides."""
    difference: Spread
    """To the reference method, paired by seed."""
    seeds: list[int]
    """The seeds in `value`."""
    outside: list[int]
    """Seeds whose points do not reach this L0: nothing is extrapolated."""


def at_common_l0(
    curves: Mapping[tuple[str, int], Mapping[int, Points]],
    metric: str,
    common: Mapping[int, Sequence[float]],
    reference: str,
) -> list[AtCommonL0]:
    """Every method of every width at each L0 of that width.

    Args:
        curves: (label, d_sae) -> seed -> points.
        metric: name of the values.
        common: L0 values by d_sae.
        reference: label that differences are taken to.
    """
    found = []
    for (label, d_sae), by_seed in curves.items():
        of_reference = curves.get((reference, d_sae), {})
        for l0 in common[d_sae]:
            values = {seed: interpolate(points, l0) for seed, points in by_seed.items()}
            inside = {seed: value for seed, value in values.items() if value is not None}
            pairs = {
                seed: (value, interpolate(of_reference[seed], l0))
                for seed, value in inside.items()
                if seed in of_reference
            }
            differences = [own - other for own, other in pairs.values() if other is not None]
            found.append(
                AtCommonL0(
                    label,
                    d_sae,
                    metric,
                    l0,
                    spread_of(inside.values()),
                    spread_of(differences if label != reference else []),
                    sorted(inside),
                    sorted(seed for seed, value in values.items() if value is None),
                )
            )
    return found


def default_common_l0(targets: Sequence[float]) -> list[float]:
    """Every target but the lowest and the highest, and the geometric mean of each two neighbours.

    Measured L0 misses its target by a little, so the outermost targets are outside the range of
    about half of the methods; between two targets all have points on both sides.

    Example:
        >>> default_common_l0([16.0, 32.0, 64.0])
        [22.6, 32.0, 45.3]
    """
    ordered = sorted(set(targets))
    between = [math.sqrt(low * high) for low, high in pairwise(ordered)]
    return sorted(float(f"{value:.3g}") for value in [*ordered[1:-1], *between])
