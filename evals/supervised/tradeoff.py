"""Test 2's trade-off between how much an edit changes and how well it works.

Source: Makelov, Lange & Nanda, arXiv 2405.08366, section 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series

from ..suite import Definition
from .scores import (
    APPROXIMATION_SECTION,
    CLEAN,
    GREY,
    UNEDITED,
    Key,
    Score,
    contenders_of,
    pooled,
    style_of,
)

SMALLEST_GAIN = 0.1
"""Accuracy that the supervised edit must gain over no intervention for a trade-off to be defined.
"""
TRADEOFF_GROUP = "Test 2: trade-off"
TRADEOFF = (
    Definition(
        name="tradeoff_weight",
        unit="1",
        better="lower",
        group=TRADEOFF_GROUP,
        text="(w − w_sup) / (1 − w_sup), with w the weight removed and w_sup that of the "
        "supervised edit; 0 is as little as the supervised edit removes, 1 everything.",
    ),
    Definition(
        name="tradeoff_accuracy",
        unit="1",
        better="higher",
        group=TRADEOFF_GROUP,
        text="(a − a_none) / (a_sup − a_none) with a the edit accuracy, a_none that without "
        "intervention, a_sup that of the supervised edit; 1 is as good as the supervised edit. "
        "Undefined where a_sup − a_none is below 0.1.",
    ),
)


def relative_tradeoff(
    accuracy: float | None,
    weight: float | None,
    *,
    unedited_accuracy: float,
    best_accuracy: float,
    best_weight: float | None,
) -> tuple[float | None, float | None]:
    """(weight, accuracy) of an edit relative to the supervised one's; None where undefined."""
    beyond = relative = None
    if weight is not None and best_weight is not None and best_weight < 1:
        beyond = (weight - best_weight) / (1 - best_weight)
    gain = best_accuracy - unedited_accuracy
    if accuracy is not None and gain >= SMALLEST_GAIN:
        relative = (accuracy - unedited_accuracy) / gain
    return beyond, relative


def tradeoff_charts(scores: Sequence[Score]) -> list[Chart]:
    """Per cross-section and edit: weight removed against accuracy, along k."""

    def key(score: Score) -> Key:
        return (score.section, score.edit, score.group, score.mode, score.k)

    accuracy, weight = pooled(scores, "accuracy", key), pooled(scores, "weight_removed", key)
    kinds = {key(score): score.kind for score in scores if score.measure == "accuracy"}
    lines: dict[Key, dict[tuple[str, str], list[tuple[Any, Any, Any]]]] = {}
    unedited: dict[Key, Any] = {}
    for index, values in accuracy.items():
        section, edit, group, mode, k = index
        panel = lines.setdefault((section, edit), {})
        if kinds[index] == "condition":
            if mode == CLEAN:
                unedited[section, edit] = values["value"]
            continue
        x = weight.get(index, {}).get("value")
        if x is not None and values["value"] is not None:
            panel.setdefault((group, mode), []).append((k, x, values["value"]))
    names = contenders_of(scores)
    return [
        _tradeoff_chart(number, index, panel, names, unedited.get(index))
        for number, (index, panel) in enumerate(lines.items())
        if panel
    ]


def _tradeoff_chart(
    number: int,
    index: Key,
    panel: Mapping[tuple[str, str], list[tuple[Any, Any, Any]]],
    names: Sequence[str],
    unedited: float | None,
) -> Chart:
    section, edit = index
    series = []
    for (group, mode), points in panel.items():
        by_k = sorted(points, key=lambda point: point[0] or 0)
        line = mode != "supervised"
        series.append(
            Series(
                name=f"{group}, {mode}" if line else group,
                mark="lines+dots" if line else "dots",
                x=[x for _, x, _ in by_k],
                y=[y for _, _, y in by_k],
                labels=[f"k = {k}" for k, _, _ in by_k] if line else None,
                style=style_of(group, names),
                dashed=mode == "aware",
            )
        )
    return Chart(
        name=f"tradeoff_{number}",
        title=f"Test 2: {edit} at {section}, control against what is changed",
        caption="Along each line the number of changed latents k grows. Weight removed is the "
        "signed share of the reconstruction that the changed latents held (1: all of it). Solid: "
        "greedy edits; dashed: latents chosen by F1. Single points: supervised and random "
        "dictionaries.",
        x=Axis(title="weight removed"),
        y=Axis(title="edit accuracy", low=-0.03, high=1.05),
        series=tuple(series),
        lines=() if unedited is None else (ReferenceLine(value=unedited, label=UNEDITED),),
        section=APPROXIMATION_SECTION,
    )


def relative_tradeoff_charts(scores: Sequence[Score]) -> list[Chart]:
    """Mean trade-off relative to the supervised edit, over the edits where it is defined."""

    def key(score: Score) -> Key:
        return (score.group, score.mode, score.k)

    def edit_of(score: Score) -> Key:
        return (score.section, score.edit, score.contender, *key(score), score.prompt_seed)

    judged = [score for score in scores if score.kind in ("task", "text")]
    # Both coordinates of a point must come from the same cross-sections, edits and seeds.
    defined = [
        {edit_of(s) for s in judged if s.measure == measure and s.estimate.value is not None}
        for measure in ("tradeoff_weight", "tradeoff_accuracy")
    ]
    kept = [score for score in judged if edit_of(score) in defined[0] & defined[1]]
    x, y = pooled(kept, "tradeoff_weight", key), pooled(kept, "tradeoff_accuracy", key)
    names, series = contenders_of(scores), []
    for group, mode in dict.fromkeys(index[:2] for index in x):
        ks = sorted(index[2] for index in x if index[:2] == (group, mode))
        series.append(
            Series(
                name=f"{group}, {mode}",
                mark="lines+dots",
                x=[x[group, mode, k]["value"] for k in ks],
                y=[y[group, mode, k]["value"] for k in ks],
                text=[str(k) for k in ks],
                style=style_of(group, names),
                dashed=mode == "aware",
            )
        )
    if not series:
        return []
    return [
        Chart(
            name="tradeoff_normalised",
            title="Test 2 relative to the supervised edit",
            caption="Means over the cross-sections and edits where the supervised edit gains at "
            f"least {SMALLEST_GAIN:g} over no intervention; numbers are k. The grey point at "
            "(0, 1) is the supervised edit: it removes w_sup of the weight and reaches accuracy "
            "a_sup. (1, 0) would remove everything and change nothing.",
            x=Axis(title="(w − w_sup) / (1 − w_sup)"),
            y=Axis(title="(a − a_none) / (a_sup − a_none)"),
            series=(
                *series,
                Series(name="supervised edit", mark="dots", x=[0], y=[1], style=GREY),
            ),
            height=420,
            section=APPROXIMATION_SECTION,
        )
    ]
