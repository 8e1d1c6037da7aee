"""The score card: mean and spread over seeds, one entry for each way of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saelab.formats.evaluation_result import EvaluationResult
from saelab.formats.files import hash_of
from saelab.stats.spread import spread_of

SCORE_CARD = {
    "frr_080": "FRR @0.8",
    "frr_090": "FRR @0.9",
    "frr_095": "FRR @0.95",
    "frr_099": "FRR @0.99",
    "mean_max_cosine_features": "mean max cosine",
    "precision_090": "precision @0.9",
    "frr_quartile_1": "FRR, most frequent quarter",
    "frr_quartile_2": "FRR, second quarter",
    "frr_quartile_3": "FRR, third quarter",
    "frr_quartile_4": "FRR, rarest quarter",
    "nmse": "NMSE",
    "l0_mean": "L0",
    "dead_fraction": "dead",
    "mcs_090": "latents other seeds found",
}


@dataclass(frozen=True, kw_only=True)
class ScoreCardEntry:
    """One way of training on one planted dictionary, over the seeds of both."""

    label: str
    """What was trained on what."""
    n_runs: int
    """Dictionaries in the entry."""
    values: dict[str, tuple[float, float | None] | None]
    """By metric, mean and sample standard deviation (None for one run); None where undefined."""

    def rank(self) -> float:
        """The headline: mean share of features recovered at cosine 0.9."""
        found = self.values["frr_090"]
        return 0.0 if found is None else found[0]


def score_card(results: Sequence[EvaluationResult]) -> list[ScoreCardEntry]:
    """Group "recovery" results that differ only in seeds, and average them.

    Args:
        results: of `run_recovery`, in any order.
    """
    groups: dict[str, list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault(_what_is_alike(result), []).append(result)
    return [
        ScoreCardEntry(
            label=_label(members[0]),
            n_runs=len(members),
            values={name: _spread([run.value(name) for run in members]) for name in SCORE_CARD},
        )
        for members in groups.values()
    ]


def _what_is_alike(result: EvaluationResult) -> str:
    origin = result.made_from
    planted = {key: value for key, value in origin["planted"].items() if key != "seed"}
    return hash_of([planted, origin["training"], result.settings])


def _label(result: EvaluationResult) -> str:
    origin = result.made_from
    training: dict[str, Any] = origin["training"]
    name = training.get("method", training["architecture"])
    target = f" k{training['target_l0']}" if training.get("target_l0") is not None else ""
    return f"{name} d{training['d_sae']}{target} on {origin['model']}"


def _spread(values: list[float | int | None]) -> tuple[float, float | None] | None:
    spread = spread_of(values)
    return None if spread.mean is None else (spread.mean, spread.sd)


CARD_COLUMNS = {
    "frr_080": "FRR@.8",
    "frr_090": "@.9",
    "frr_quartile_4": "rarest",
    "precision_090": "prec@.9",
    "l0_mean": "L0",
}


def score_card_table(entries: Sequence[ScoreCardEntry]) -> Any:
    """A line for each way of training: mean ± sample standard deviation over seeds."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title="score card: mean ± standard deviation over seeds", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("trained", overflow="fold")
    origins = {entry.label.partition(" on ")[2] for entry in entries}
    for label in CARD_COLUMNS.values():
        table.add_column(label, justify="right")
    for entry in sorted(entries, key=lambda entry: entry.rank(), reverse=True):
        cells = [_cell(entry.values[name]) for name in CARD_COLUMNS]
        label = entry.label.partition(" on ")[0] if len(origins) == 1 else entry.label
        table.add_row(label, *cells)
    return table


def _cell(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "—"
    return f"{found[0]:.2f}" + ("" if found[1] is None else f"±{found[1]:.2f}")
