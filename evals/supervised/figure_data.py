"""The data of the report's figures, from the scores: means over seeds, with whiskers.

Whiskers are the 95 % interval over prompts where there is one seed, and ± one standard deviation
over seeds where there are several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from saelab.stats.bootstrap import over_seeds

from .scores import Score

Key = tuple[Any, ...]
ACCURACY_K = 2
NONE = "clean"


def pooled(
    scores: Iterable[Score], measure: str, key: Callable[[Score], Key]
) -> dict[Key, dict[str, float | int | None]]:
    """Scores of one measure, pooled over seeds (and whatever else the key leaves out)."""
    members: dict[Key, list[Score]] = {}
    for score in scores:
        if score.measure == measure:
            members.setdefault(key(score), []).append(score)
    found: dict[Key, dict[str, float | int | None]] = {}
    for place, group in members.items():
        spread = over_seeds([score.estimate.value for score in group])
        mean, deviation = spread["mean"], spread["standard_deviation"]
        low, high = group[0].estimate.low, group[0].estimate.high
        if len(group) > 1:
            low = high = None
            if mean is not None and deviation is not None:
                low, high = mean - deviation, mean + deviation
        found[place] = {"value": mean, "low": low, "high": high, "n": len(group)}
    return found


def contenders_of(scores: Sequence[Score]) -> list[str]:
    """Names of what is compared, floors and skylines before the dictionaries."""
    order = {"condition": 0, "floor": 1, "skyline": 2, "text": 3, "task": 4}
    kinds: dict[str, str] = {}
    for score in scores:
        if score.kind and score.kind != "condition":
            kinds.setdefault(score.group, score.kind)
    return sorted(kinds, key=lambda name: order[kinds[name]])


def figures_from(
    scores: Sequence[Score], histograms: Sequence[dict[str, Any]], ceiling: str
) -> dict[str, Any]:
    """By figure name, what it is drawn from; figures without data are left out."""
    figures = {
        "approximation": _approximation(scores),
        "edit_accuracy": _accuracy(scores, ceiling),
        "tradeoff": _tradeoff(scores, ceiling),
        "tradeoff_normalised": _normalised(scores),
        "f1_histogram": {"panels": _histograms(histograms)},
        "f1_sweep": _sweep(scores),
        "occlusion": _occlusion(scores),
    }
    return {
        name: data
        for name, data in figures.items()
        if any(data.get(part) for part in ("bars", "panels", "lines"))
    }


def _bars(found: dict[Key, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"series": series, "category": category, **values}
        for (series, category), values in found.items()
        if values["value"] is not None
    ]


def _approximation(scores: Sequence[Score]) -> dict[str, Any]:
    """Sufficiency and necessity of every contender at every cross-section."""
    bars = {
        measure: _bars(pooled(scores, measure, lambda one: (one.group, one.section)))
        for measure in ("sufficiency", "necessity")
    }
    metrics = pooled(scores, "metric", lambda one: (one.section, one.mode))
    floors = {}
    for section in dict.fromkeys(one.section for one in scores):
        clean = metrics.get((section, NONE), {}).get("value")
        ablated = metrics.get((section, "mean ablation"), {}).get("value")
        if clean and ablated is not None:
            floors[section] = ablated / clean
    return {"bars": bars, "contenders": contenders_of(scores), "mean_ablation": floors}


def _accuracy(scores: Sequence[Score], ceiling: str) -> dict[str, Any]:
    """Edit accuracy: references, and dictionaries with the fewest changes."""
    ks = sorted({one.k for one in scores if one.k is not None})
    shown_k = ACCURACY_K if ACCURACY_K in ks else (ks[0] if ks else None)

    def series(one: Score) -> str | None:
        if one.kind == "condition":
            return {NONE: "no intervention"}.get(one.mode)
        if one.kind in ("floor", "skyline"):
            return one.group
        # Each edit changes at least two latents per attribute, as the supervised one does.
        wanted = (shown_k or 0) * (one.edit.count("+") + 1)
        return f"{one.group} ({one.mode})" if one.k == wanted else None

    kept = [one for one in scores if one.measure == "accuracy" and series(one) is not None]
    found = pooled(kept, "accuracy", lambda one: (series(one), f"{one.edit} at {one.section}"))
    names = list(dict.fromkeys(series(one) for one in kept))
    return {"bars": _bars(found), "contenders": names, "k": shown_k, "ceiling": ceiling}


def _tradeoff(scores: Sequence[Score], ceiling: str) -> dict[str, Any]:
    """Per cross-section and edit: weight removed against accuracy, along k."""

    def key(one: Score) -> Key:
        return (one.section, one.edit, one.group, one.mode, one.k)

    accuracy, weight = pooled(scores, "accuracy", key), pooled(scores, "weight_removed", key)
    kinds = {key(one): one.kind for one in scores if one.measure == "accuracy"}
    panels: dict[Key, dict[str, Any]] = {}
    for (section, edit, group, mode, k), values in accuracy.items():
        place = (section, edit, group, mode, k)
        panel = panels.setdefault(
            (section, edit),
            {"title": f"{edit} at {section}", "lines": [], "points": [], "none": None},
        )
        if kinds[place] == "condition":
            if mode == NONE:
                panel["none"] = values["value"]
            continue
        x = weight.get(place, {}).get("value")
        if x is None or values["value"] is None:
            continue
        point = {"k": k, "weight": x, "accuracy": values["value"]}
        point |= {"low": values["low"], "high": values["high"]}
        if kinds[place] in ("floor", "skyline"):
            panel["points"].append({"series": group, **point})
            continue
        lines = panel["lines"]
        line = next((one for one in lines if (one["series"], one["mode"]) == (group, mode)), None)
        if line is None:
            lines.append({"series": group, "mode": mode, "points": [point]})
        else:
            line["points"].append(point)
    return {
        "panels": list(panels.values()),
        "contenders": contenders_of(scores),
        "ceiling": ceiling,
    }


def _normalised(scores: Sequence[Score]) -> dict[str, Any]:
    """Mean normalised trade-off over the cross-sections and edits where it is defined."""

    def key(one: Score) -> Key:
        return (one.group, one.mode, one.k)

    judged = [one for one in scores if one.kind in ("task", "text")]
    # Both coordinates of a point must come from the same cross-sections, edits and seeds.
    parts: dict[Key, dict[str, float]] = {}
    for one in judged:
        if one.measure in ("tradeoff_weight", "tradeoff_accuracy"):
            place = (one.section, one.edit, one.contender, one.mode, one.k, one.prompt_seed)
            if one.estimate.value is not None:
                parts.setdefault(place, {})[one.measure] = one.estimate.value
    usable = {place for place, values in parts.items() if len(values) == 2}
    kept = [
        one
        for one in judged
        if (one.section, one.edit, one.contender, one.mode, one.k, one.prompt_seed) in usable
    ]
    x, y = pooled(kept, "tradeoff_weight", key), pooled(kept, "tradeoff_accuracy", key)
    lines: dict[Key, list[dict[str, Any]]] = {}
    for (group, mode, k), values in x.items():
        other = y[group, mode, k]
        lines.setdefault((group, mode), []).append(
            {"k": k, "weight": values["value"], "accuracy": other["value"], "n": values["n"]}
        )
    return {
        "lines": [
            {"series": group, "mode": mode, "points": sorted(points, key=lambda p: p["k"])}
            for (group, mode), points in lines.items()
        ],
        "contenders": contenders_of(scores),
    }


def _histograms(histograms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts of all cross-sections and seeds of a candidate's group, added up."""
    panels: dict[str, dict[str, list[int]]] = {}
    for one in histograms:
        panel = panels.setdefault(one["group"], {})
        for kind, counts in one["counts"].items():
            before = panel.get(kind, [0] * len(counts))
            panel[kind] = [a + b for a, b in zip(before, counts, strict=True)]
    return [{"title": group, "counts": counts} for group, counts in panels.items()]


def _sweep(scores: Sequence[Score]) -> dict[str, Any]:
    panels: dict[str, list[dict[str, Any]]] = {}
    for measure in ("kept_sufficiency", "removed_necessity"):
        found = pooled(scores, measure, lambda one: (one.section, one.group, one.threshold))
        lines: dict[Key, list[dict[str, Any]]] = {}
        for (section, group, threshold), values in found.items():
            if values["value"] is not None:
                lines.setdefault((section, group), []).append({"threshold": threshold, **values})
        for (section, group), points in lines.items():
            panels.setdefault(section, []).append(
                {
                    "series": group,
                    "measure": measure,
                    "points": sorted(points, key=lambda point: point["threshold"]),
                }
            )
    return {
        "panels": [{"title": section, "lines": lines} for section, lines in panels.items()],
        "contenders": contenders_of(scores),
    }


def _occlusion(scores: Sequence[Score]) -> dict[str, Any]:
    """Values found per attribute, mean over sites, cross-sections and seeds."""
    thresholds = sorted(
        {one.threshold for one in scores if one.measure == "values_found" and one.threshold}
    )
    if not thresholds:
        return {"bars": []}
    lowest = thresholds[0]
    kept = [one for one in scores if one.threshold in (None, lowest)]
    found = pooled(kept, "values_found", lambda one: (one.group, one.attribute))
    there = pooled(kept, "n_values", lambda one: (one.attribute,))
    return {
        "bars": _bars(found),
        "n_values": {attribute: values["value"] for (attribute,), values in there.items()},
        "splinters": _bars(pooled(kept, "n_splinters", lambda one: (one.group, one.attribute))),
        "threshold": lowest,
        "contenders": [
            name
            for name in contenders_of(scores)
            if any(one.group == name and one.measure == "values_found" for one in kept)
        ],
    }
