"""From dictionaries to rows: one per method, width and target L0, with the spread over seeds."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from saelab.stats.bootstrap import UNDEFINED, Estimate
from saelab.stats.metric_definitions import INFERENCE_MODES
from saelab.stats.spread import Spread, spread_of

from ..core.charts import MODE_COLUMNS
from ..definitions import Definition
from ..document_sums import EFFECTS, over_documents
from .candidates import UNKNOWN_SEED
from .jobs import by_group
from .numbers import MeasuredCandidate, number
from .suite import CompareConfig

Points = Sequence[tuple[float, float]]
"""(measured L0, value) of the dictionaries of one seed, one per target L0."""


def interpolate(points: Points, l0: float) -> float | None:
    """The value at an L0, piecewise linear in log L0; None outside the range of the points."""
    weights = interpolation_weights([at for at, _ in points], l0)
    if weights is None:
        return None
    return math.fsum(
        weight * value for weight, (_, value) in zip(weights, points, strict=True) if weight
    )


def interpolation_weights(places: Sequence[float], l0: float) -> list[float] | None:
    """What the values of points at these L0 count for in the value at another; None outside.

    Points of equal L0 count as one with the mean of their values. Points of L0 zero are left out:
    they have no logarithm.
    """
    known = sorted({at for at in places if at > 0})
    if not known or not known[0] <= l0 <= known[-1]:
        return None
    upper = bisect_left(known, l0)
    low, high = known[max(upper - 1, 0)], known[upper]
    share = 1.0 if high == l0 else math.log(l0 / low) / math.log(high / low)
    of_place = {low: 1 - share} | {high: share}
    return [of_place.get(at, 0.0) / places.count(at) for at in places]


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
    documents: Estimate = UNDEFINED
    """The same mean difference with its interval over documents."""


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
    compared = []
    for (label, d_sae), by_seed in curves.items():
        of_reference = curves.get((reference, d_sae), {})
        for l0 in common[d_sae]:
            values = {seed: interpolate(points, l0) for seed, points in by_seed.items()}
            inside = {seed: value for seed, value in values.items() if value is not None}
            differences = [
                value - base
                for seed, value in inside.items()
                if label != reference and seed in of_reference
                if (base := interpolate(of_reference[seed], l0)) is not None
            ]
            compared.append(
                AtCommonL0(
                    label,
                    d_sae,
                    metric,
                    l0,
                    spread_of(inside.values()),
                    spread_of(differences),
                    sorted(inside),
                    sorted(seed for seed, value in values.items() if value is None),
                )
            )
    return compared


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


@dataclass(frozen=True, eq=False)
class Row:
    """The seeds of one method, width and target L0."""

    label: str
    """Method, with what tells it from other settings of it."""
    d_sae: int
    k: float | None
    members: list[MeasuredCandidate]
    """The lowest seed first."""
    values: dict[str, Spread]
    """By column."""
    documents: Mapping[str, Estimate] = field(default_factory=dict)
    """By column, the mean over seeds with its interval over documents, where there is one."""

    @property
    def seeds(self) -> list[int | None]:
        """Seeds of the members."""
        return [member.candidate.seed for member in self.members]

    @property
    def k_text(self) -> str:
        """The target L0 for people."""
        return "—" if self.k is None else f"{self.k:g}"

    @property
    def path(self) -> str:
        """Where its numbers are in a result, such as "topk/d4608/k32"."""
        return f"{self.label}/d{self.d_sae}/k{self.k_text}"


def rows_of(members: Sequence[MeasuredCandidate]) -> list[Row]:
    """The rows, by method in the order given, then by width and target L0."""
    by_hash = {member.candidate.content_hash: member for member in members}
    labels = labels_in_order(members)
    rows = []
    for (label, d_sae, k), candidates in by_group([m.candidate for m in members]).items():
        group = [by_hash[candidate.content_hash] for candidate in candidates]
        values = {
            name: spread_of(member.values[name] for member in group) for name in group[0].values
        }
        shares = [(member, 1 / len(group)) for member in group]
        documents = {name: _over_documents(shares, name) for name in EFFECTS}
        rows.append(Row(label, d_sae, k, group, values, documents))
    return sorted(rows, key=lambda row: (labels.index(row.label), row.d_sae, row.k or 0.0))


def labels_in_order(members: Sequence[MeasuredCandidate]) -> list[str]:
    """Every label once, in the order of the dictionaries given."""
    return list(dict.fromkeys(member.candidate.label for member in members))


def reference_label(members: Sequence[MeasuredCandidate], config: CompareConfig) -> str:
    """The method that differences are taken to: the one asked for, or the first."""
    labels = labels_in_order(members)
    if config.reference in labels:
        return config.reference
    candidates = [member.candidate for member in members]
    return next((c.label for c in candidates if c.method == config.reference), labels[0])


def compare_at_common_l0(
    members: Sequence[MeasuredCandidate], rows: Sequence[Row], config: CompareConfig
) -> list[AtCommonL0]:
    """FVU and loss recovered of every method at each common L0."""
    targets: dict[int, list[float]] = {row.d_sae: [] for row in rows}
    for row in rows:
        targets[row.d_sae] += [] if row.k is None else [row.k]
    common = {
        d_sae: default_common_l0(of_width) if config.common_l0 is None else sorted(config.common_l0)
        for d_sae, of_width in targets.items()
    }
    reference = reference_label(members, config)
    by_label: dict[tuple[str, int], dict[int, list[MeasuredCandidate]]] = {}
    for member in members:
        candidate = member.candidate
        seed = UNKNOWN_SEED if candidate.seed is None else candidate.seed
        by_seed = by_label.setdefault((candidate.label, candidate.d_sae), {})
        by_seed.setdefault(seed, []).append(member)
    compared = []
    for metric in PARETO_METRICS:
        curves = {
            key: {seed: _points(of_seed, metric) for seed, of_seed in by_seed.items()}
            for key, by_seed in by_label.items()
            if any(_points(of_seed, metric) for of_seed in by_seed.values())
        }
        compared += [
            replace(at, documents=_difference_over_documents(by_label, at, reference))
            for at in at_common_l0(curves, metric, common, reference)
        ]
    return compared


def _points(members: Sequence[MeasuredCandidate], metric: str) -> Points:
    pairs = [(member.values["l0_mean"], member.values[metric]) for member in members]
    return [(l0, value) for l0, value in pairs if l0 is not None and value is not None]


def _over_documents(weighted: Sequence[tuple[MeasuredCandidate, float]], metric: str) -> Estimate:
    """A weighted sum over dictionaries with its interval over documents; undefined where they were
    not all measured on the same ones, which their predicted positions tell."""
    sums = [member.sums for member, _ in weighted if member.sums is not None]
    same = all(torch.equal(columns[:, 0], sums[0][:, 0]) for columns in sums)
    if metric not in EFFECTS or not same or len(sums) < len(weighted):
        return UNDEFINED
    return over_documents(sums, [weight for _, weight in weighted], metric)


def _difference_over_documents(
    members: Mapping[tuple[str, int], Mapping[int, Sequence[MeasuredCandidate]]],
    at: AtCommonL0,
    reference: str,
) -> Estimate:
    """The mean difference at a common L0: its seeds and points weigh what they weigh in it."""
    weighted: list[tuple[MeasuredCandidate, float]] = []
    for seed in at.seeds if at.difference.n else ():
        sides = []
        for label, sign in ((at.label, 1.0), (reference, -1.0)):
            of_label = members.get((label, at.d_sae), {}).get(seed, ())
            weights = interpolation_weights([m.values["l0_mean"] or 0.0 for m in of_label], at.l0)
            sides.append([(m, sign * w) for m, w in zip(of_label, weights or (), strict=False)])
        if all(sides):
            weighted += [(m, w / at.difference.n) for side in sides for m, w in side]
    return _over_documents(weighted, at.metric)


@dataclass(frozen=True, eq=False)
class ModeRow:
    """One inference mode of the seeds of one method, width and target L0."""

    row: Row
    mode: str
    """One of `INFERENCE_MODES`."""
    values: dict[str, Spread]
    """By name in `MODE_COLUMNS`."""


def mode_rows_of(rows: Sequence[Row]) -> list[ModeRow]:
    """The inference modes of those dictionaries whose core result has them; often none."""
    mode_rows = []
    for row in rows:
        by_seed = [
            {metric.name: metric.value for metric in member.results["core"].metrics}
            for member in row.members
        ]
        for mode in INFERENCE_MODES:
            names = {name: f"mode_{mode}_{name}" for name in MODE_COLUMNS}
            if any(key in metrics for metrics in by_seed for key in names.values()):
                values = {
                    name: spread_of(number(metrics.get(key)) for metrics in by_seed)
                    for name, key in names.items()
                }
                mode_rows.append(ModeRow(row, mode, values))
    return mode_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodComparison:
    """Everything that is known of the dictionaries of a comparison."""

    config: CompareConfig
    members: list[MeasuredCandidate]
    """Every dictionary with its numbers, in the order given."""
    columns: dict[str, Definition]
    """The numbers that some dictionary has."""
    rows: list[Row]
    reference: str
    """Label that differences are taken to."""
    compared: list[AtCommonL0]
    modes: list[ModeRow]
    notes: list[str]
    """What a reader should know, in sentences."""
