"""From dictionaries to rows: one per method, width and target L0, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saelab.stats.metric_definitions import INFERENCE_MODES

from .common_l0 import AtCommonL0, Points, at_common_l0, default_common_l0
from .config import CompareConfig
from .jobs import by_group
from .spread import Spread, spread_of
from .values import Measured, number

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
    members: list[Measured]
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


def rows_of(found: Sequence[Measured]) -> list[Row]:
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


def labels_in_order(found: Sequence[Measured]) -> list[str]:
    """Every label once, in the order of the dictionaries given."""
    return list(dict.fromkeys(one.candidate.label for one in found))


def reference_label(found: Sequence[Measured], config: CompareConfig) -> str:
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
    found: Sequence[Measured], rows: Sequence[Row], config: CompareConfig
) -> list[AtCommonL0]:
    """FVU and loss recovered of every method at each common L0."""
    common, reference = common_l0_of(rows, config), reference_label(found, config)
    compared = []
    for metric in PARETO_METRICS:
        compared += at_common_l0(_curves(found, metric), metric, common, reference)
    return compared


def _curves(found: Sequence[Measured], metric: str) -> dict[tuple[str, int], dict[int, Points]]:
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
