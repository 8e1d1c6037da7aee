"""The data of a comparison's figures, as they are kept in its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import EvaluationResult

from ..steering.definitions import metric_name
from .common_l0 import AtCommonL0
from .config import CompareConfig
from .definitions import Column
from .jobs import middle_k
from .latent_use import density_curve
from .rows import PARETO_METRICS, Row, common_l0_of, k_text, labels_in_order
from .spread import Spread
from .values import Measured

QUANTILES = ("q05", "q25", "q50", "q75", "q95", "mean")
COSTS = {
    "train_seconds": ("Training time", "training time", "s"),
    "state_mib": ("Training memory", "state between steps", "MiB"),
}
Figures = dict[str, list[dict[str, Any]]]


def figure_data_of(
    found: Sequence[Measured],
    rows: Sequence[Row],
    compared: Sequence[AtCommonL0],
    columns: Mapping[str, Column],
    reference: str,
    config: CompareConfig,
) -> Figures:
    """By kind of figure, the data of each figure of the kind: one per width, or metric, or both.

    Raises:
        ArtifactError: a suite's figure data is not what the suite writes.
    """
    names = labels_in_order(found)
    middle = middle_k([one.candidate for one in found])
    common = common_l0_of(rows, config)
    figures: Figures = {}

    def add(kind: str, data: dict[str, Any] | None, d_sae: int) -> None:
        if data is not None:
            about = {"d_sae": d_sae, "many_widths": len(middle) > 1, "names": names}
            figures.setdefault(kind, []).append(about | data)

    for d_sae in sorted(middle):
        of_width = [row for row in rows if row.d_sae == d_sae]
        central = [row for row in of_width if row.k == middle[d_sae]]
        for metric in PARETO_METRICS:
            add("pareto", _pareto(of_width, metric, columns), d_sae)
            at = [one for one in compared if one.metric == metric and one.d_sae == d_sae]
            add("differences", _differences(at, metric, common[d_sae], reference), d_sae)
        add("dead_and_underused", _dead(of_width, columns), d_sae)
        add("density_by_rank", _density(central), d_sae)
        for by in ("rank", "cosine"):
            add("consistency", _consistency(central, by), d_sae)
        for quantity in ("size", "consistency"):
            add("steering", _steering(of_width, quantity, config), d_sae)
        for name in COSTS:
            add("costs", _costs(of_width, name, columns), d_sae)
    return figures


def _pareto(
    rows: Sequence[Row], metric: str, columns: Mapping[str, Column]
) -> dict[str, Any] | None:
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        l0, value = row.values["l0_mean"], row.values[metric]
        if not l0.mean or value.mean is None:
            continue
        empty: dict[str, Any] = {
            key: [] for key in ("k", "seeds", "l0", "l0_sd", "value", "value_sd")
        }
        line = lines.setdefault(row.label, {"name": row.label, **empty})
        point = (row.k_text, value.n, l0.mean, l0.sd, value.mean, value.sd)
        for key, part in zip(empty, point, strict=True):
            line[key].append(part)
    if not lines:
        return None
    return {
        "metric": metric,
        "definition": columns[metric].definition,
        "lines": [_by_l0(line) for line in lines.values()],
    }


def _by_l0(line: dict[str, Any]) -> dict[str, Any]:
    order = sorted(range(len(line["l0"])), key=lambda place: line["l0"][place])
    return {
        key: [values[place] for place in order] if isinstance(values, list) else values
        for key, values in line.items()
    }


def _differences(
    compared: Sequence[AtCommonL0], metric: str, common: Sequence[float], reference: str
) -> dict[str, Any] | None:
    rows = [
        {
            "name": one.label,
            "l0": one.l0,
            "difference": one.difference.mean,
            "difference_sd": one.difference.sd,
            "pairs": one.difference.n,
        }
        for one in compared
        if one.label != reference
    ]
    if all(row["difference"] is None for row in rows):
        return None
    return {"metric": metric, "reference": reference, "l0": list(common), "rows": rows}


def _dead(rows: Sequence[Row], columns: Mapping[str, Column]) -> dict[str, Any]:
    def parts(row: Row) -> dict[str, Any]:
        dead, underused = row.values["dead_fraction"], row.values["underused_fraction"]
        return {
            "name": row.label,
            "k": row.k_text,
            "dead": dead.mean,
            "dead_sd": dead.sd,
            "underused": underused.mean,
            "underused_sd": underused.sd,
        }

    return {
        "dead_definition": columns["dead_fraction"].definition,
        "underused_definition": columns["underused_fraction"].definition,
        "rows": [parts(row) for row in rows],
    }


def _density(rows: Sequence[Row]) -> dict[str, Any] | None:
    curves = [
        {"name": row.label, **density_curve([one.density for one in row.members])} for row in rows
    ]
    curves = [curve for curve in curves if curve["rank"]]
    return {"k": rows[0].k_text, "curves": curves} if curves else None


def _consistency(rows: Sequence[Row], by: str) -> dict[str, Any] | None:
    """Curves of each group; all its members carry the same, so those of the first are taken."""
    curves, random, threshold = [], None, None
    for row in rows:
        result = row.members[0].results.get("consistency")
        if result is None:
            continue
        try:
            if by == "rank":
                data = result.figure_data["share_by_rank"]
                x, share = data["fraction"], data["curves"]["max_activation"]["mcs"]
            else:
                data = result.figure_data["mcs_distribution"]
                x, share = data["cosine"], data["mcs"]
                random = random or {"x": x, "share": list(data["random"])}
            threshold = float(result.settings["threshold"])
            curves.append({"name": row.label, "x": list(x), "share": list(share)})
        except (KeyError, TypeError, ValueError) as error:
            raise _unusable(result, error) from error
    if not curves:
        return None
    return {
        "by": by,
        "k": rows[0].k_text,
        "threshold": threshold,
        "curves": curves,
        "random": random,
    }


def _steering(rows: Sequence[Row], quantity: str, config: CompareConfig) -> dict[str, Any] | None:
    steered = [(row, one) for row in rows for one in row.members if "steering" in one.results]
    if not steered:
        return None
    labels = [row.label for row, _ in steered]

    def box(result: EvaluationResult, prefix: str) -> dict[str, Any]:
        strength = config.steering_strength
        values = {
            name: result.value(metric_name(quantity, f"{prefix}{name}", strength))
            for name in QUANTILES
        }
        if None in values.values():
            raise ArtifactError(
                f"the steering result of {result.dictionary_name} leaves {quantity} undefined: it "
                "was edited; evaluate again with --overwrite"
            )
        return values

    boxes = []
    for row, one in steered:
        alone = labels.count(row.label) == 1
        told = "" if alone else f" k {row.k_text} seed {one.candidate.seed}"
        boxes.append(
            {"name": f"{row.label}{told}", "method": row.label, **box(one.results["steering"], "")}
        )
    floor = box(steered[0][1].results["steering"], "random_")
    boxes.append({"name": "random directions", "method": None, **floor})
    return {"quantity": quantity, "strength": config.steering_strength, "boxes": boxes}


def _costs(rows: Sequence[Row], name: str, columns: Mapping[str, Column]) -> dict[str, Any] | None:
    known: list[tuple[Row, Spread]] = [
        (row, row.values[name]) for row in rows if row.values[name].mean is not None
    ]
    if not known:
        return None
    title, axis, unit = COSTS[name]
    return {
        "name": name,
        "title": title,
        "axis": axis,
        "unit": unit,
        "definition": columns[name].definition,
        "rows": [
            {"name": row.label, "k": k_text(row.k), "value": spread.mean, "sd": spread.sd}
            for row, spread in known
        ],
    }


def _unusable(result: EvaluationResult, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"the figure data of the {result.suite} result of {result.dictionary_name} is not what the "
        f"suite writes ({error!r}): it was edited; evaluate again with --overwrite"
    )
