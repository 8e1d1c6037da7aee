"""From dictionaries to rows: one per method, width and target L0, with the spread over seeds."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from saelab.stats.metric_definitions import INFERENCE_MODES
from saelab.stats.spread import Spread, spread_of

from .config import CompareConfig
from .jobs import by_group
from .numbers import MeasuredCandidate, number

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


PARETO_METRICS = ("fvu", "loss_recovered_mean")
MODE_METRICS = ("l0_mean", "fvu", "loss_recovered_mean", "loss_recovered_zero", "kl")


@dataclass(frozen=True, eq=False)
class Row:
    """The seeds of one method, width and target L0."""

    label: str
    """Method, with what tells it from other settings of it."""
    d_sae: int
    k: float | None
    """Target L0."""
    members: list[MeasuredCandidate]
    """The lowest seed first."""
    values: dict[str, Spread]
    """By column."""

    @property
    def seeds(self) -> list[int]:
        """Seeds of the members."""
        return [one.candidate.seed for one in self.members]

    @property
    def k_text(self) -> str:
        """The target L0 for people."""
        return k_text(self.k)


def k_text(k: float | None) -> str:
    """A target L0 for people."""
    return "—" if k is None else f"{k:g}"


def rows_of(found: Sequence[MeasuredCandidate]) -> list[Row]:
    """The rows, by method in the order given, then by width and target L0."""
    by_hash = {one.candidate.content_hash: one for one in found}
    groups = by_group([one.candidate for one in found])
    labels = labels_in_order(found)
    rows = []
    for (label, d_sae, k), candidates in groups.items():
        members = [by_hash[one.content_hash] for one in candidates]
        values = {
            name: spread_of(one.values[name] for one in members) for name in members[0].values
        }
        rows.append(Row(label, d_sae, k, members, values))
    return sorted(rows, key=lambda row: (labels.index(row.label), row.d_sae, row.k or 0.0))


def labels_in_order(found: Sequence[MeasuredCandidate]) -> list[str]:
    """Every label once, in the order of the dictionaries given."""
    return list(dict.fromkeys(one.candidate.label for one in found))


def reference_label(found: Sequence[MeasuredCandidate], config: CompareConfig) -> str:
    """The method that differences are taken to: the one asked for, or the first."""
    labels = labels_in_order(found)
    if config.reference in labels:
        return config.reference
    of_method = [one.candidate.label for one in found if one.candidate.method == config.reference]
    return (of_method or labels)[0]


def common_l0_of(rows: Sequence[Row], config: CompareConfig) -> dict[int, list[float]]:
    """By width, the L0 values at which methods are held against one another."""
    widths = sorted({row.d_sae for row in rows})
    if config.common_l0 is not None:
        return {d_sae: sorted(config.common_l0) for d_sae in widths}
    targets = {
        d_sae: [row.k for row in rows if row.d_sae == d_sae and row.k is not None]
        for d_sae in widths
    }
    return {d_sae: default_common_l0(values) for d_sae, values in targets.items()}


def compare_at_common_l0(
    found: Sequence[MeasuredCandidate], rows: Sequence[Row], config: CompareConfig
) -> list[AtCommonL0]:
    """FVU and loss recovered of every method at each common L0."""
    common, reference = common_l0_of(rows, config), reference_label(found, config)
    compared = []
    for metric in PARETO_METRICS:
        compared += at_common_l0(_curves(found, metric), metric, common, reference)
    return compared


def _curves(
    found: Sequence[MeasuredCandidate], metric: str
) -> dict[tuple[str, int], dict[int, Points]]:
    """(label, d_sae) -> seed -> points, of dictionaries that have the number."""
    curves: dict[tuple[str, int], dict[int, list[tuple[float, float]]]] = {}
    for one in found:
        l0, value = one.values["l0_mean"], one.values[metric]
        if l0 is None or value is None:
            continue
        key = (one.candidate.label, one.candidate.d_sae)
        curves.setdefault(key, {}).setdefault(one.candidate.seed, []).append((l0, value))
    return {key: dict(by_seed) for key, by_seed in curves.items()}


@dataclass(frozen=True, eq=False)
class ModeRow:
    """One inference mode of the seeds of one method, width and target L0."""

    row: Row
    mode: str
    """One of `INFERENCE_MODES`."""
    values: dict[str, Spread]
    """By name in `MODE_METRICS`."""


def mode_rows_of(rows: Sequence[Row]) -> list[ModeRow]:
    """The inference modes of those dictionaries whose core result has them; often none."""
    found = []
    for row in rows:
        by_seed: list[Mapping[str, float | int | None]] = [
            {metric.name: metric.value for metric in one.results["core"].metrics}
            for one in row.members
        ]
        for mode in INFERENCE_MODES:
            names = {name: f"mode_{mode}_{name}" for name in MODE_METRICS}
            if any(key in metrics for metrics in by_seed for key in names.values()):
                values = {
                    name: spread_of(number(metrics.get(key)) for metrics in by_seed)
                    for name, key in names.items()
                }
                found.append(ModeRow(row, mode, values))
    return found
