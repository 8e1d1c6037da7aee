"""What other suites have said of the dictionaries compared: their headline numbers against L0.

A comparison evaluates core, consistency and steering; of all others it takes what lies beside the
dictionaries, such as `saelab eval all` leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    read_evaluation_result,
)

from ..suite import CONTROLS
from .jobs import RESULTS_FOLDER
from .numbers import MeasuredCandidate

COMPARED = ("core", "consistency", "steering", "compare")
"""Suites that a comparison shows in its own way."""


@dataclass(frozen=True)
class Said:
    """One headline number of a dictionary."""

    member: MeasuredCandidate
    metric: MeasuredMetric
    low: float | None
    """Lower end of its interval; None where the suite gives none."""
    high: float | None
    control: float | None
    """What the best control scores; None where none was measured."""


def charts_of_other_suites(members: Sequence[MeasuredCandidate]) -> list[Chart]:
    """A chart for each headline number that at least two of the dictionaries have."""
    said: dict[tuple[str, str], list[Said]] = {}
    for member in members:
        for path in sorted((member.candidate.folder / RESULTS_FOLDER).glob("*.json")):
            if path.stem in COMPARED:
                continue
            result = read_evaluation_result(path)
            if result.dictionary_hash == member.candidate.content_hash:
                for each in _headlines(member, result):
                    said.setdefault((result.suite, each.metric.name), []).append(each)
    return [_chart(suite, each) for (suite, _), each in said.items() if len(each) > 1]


def _headlines(member: MeasuredCandidate, result: EvaluationResult) -> list[Said]:
    values = {metric.name: metric.value for metric in result.metrics}
    controls = _best_controls(result)
    return [
        Said(
            member,
            metric,
            values.get(f"{metric.name}_low"),
            values.get(f"{metric.name}_high"),
            controls.get(metric.name),
        )
        for metric in result.metrics
        if metric.name in result.headline and metric.value is not None
    ]


def _best_controls(result: EvaluationResult) -> dict[str, float]:
    """By number, the best of the controls that stand between the trained and the best possible."""
    best = {}
    for table in result.tables:
        if table.section != CONTROLS:
            continue
        for name, better, _, *controls, _, _ in table.rows:
            if known := [value for value in controls if value is not None]:
                best[name] = max(known) if better == "higher" else min(known)
    return best


def _chart(suite: str, said: Sequence[Said]) -> Chart:
    metric = said[0].metric
    labels = list(dict.fromkeys(each.member.candidate.label for each in said))
    series = [
        _series(label, index, [each for each in said if each.member.candidate.label == label])
        for index, label in enumerate(labels)
    ]
    if controlled := [each for each in said if each.control is not None]:
        series.append(
            Series(
                name="best control of each",
                x=[each.member.values["l0_mean"] for each in controlled],
                y=[each.control for each in controlled],
                mark="dots",
                style=len(labels),
                labels=[each.member.candidate.name for each in controlled],
                dashed=True,
            )
        )
    better = "" if metric.better == "neither" else f" ({metric.better} is better)"
    return Chart(
        name=f"{suite}_{metric.name}",
        title=f"{suite.replace('_', '-')}: {metric.name}{better}",
        caption=f"{metric.definition} A point per dictionary; error bars where the suite gives an "
        "interval.",
        x=Axis(title="measured L0: active latents per token (log)", log=True),
        y=Axis(title=f"{metric.name}{'' if metric.unit == '1' else f' ({metric.unit})'}"),
        series=tuple(series),
        section="Other suites",
    )


def _series(label: str, style: int, said: Sequence[Said]) -> Series:
    ordered = sorted(said, key=lambda each: each.member.values["l0_mean"] or 0.0)
    bounded = all(each.low is not None and each.high is not None for each in ordered)
    return Series(
        name=label,
        x=[each.member.values["l0_mean"] for each in ordered],
        y=[each.metric.value for each in ordered],
        mark="dots",
        style=style,
        low=[each.low for each in ordered] if bounded else None,
        high=[each.high for each in ordered] if bounded else None,
        labels=[each.member.candidate.name for each in ordered],
    )
