"""The score card: mean and spread over seeds, an entry for each way of training, as files too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import EvaluationResult, Table
from saelab.formats.files import hash_of
from saelab.formats.manifest import new_manifest, write_manifest
from saelab.report.result_page import write_result_page
from saelab.stats.spread import Spread, spread_of

from ..display import error_bars
from ..terminal import terminal_table

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
ON_TERMINAL = {
    "frr_080": "FRR@.8",
    "frr_090": "@.9",
    "frr_quartile_4": "rarest",
    "precision_090": "prec@.9",
    "l0_mean": "L0",
}
KIND = "recovery_score_card"
JSON_FILE = "score_card.json"
PAGE_FILE = "score_card.html"


@dataclass(frozen=True, kw_only=True)
class ScoreCardEntry:
    """One way of training on one planted dictionary, over the seeds of both."""

    label: str
    """What was trained on what."""
    n_runs: int
    """Dictionaries in the entry."""
    values: dict[str, Spread]
    """By metric; without a mean where undefined."""


def score_card(results: Sequence[EvaluationResult]) -> list[ScoreCardEntry]:
    """Group "recovery" results that differ only in seeds, and average them."""
    groups: dict[str, list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault(_alike(result), []).append(result)
    return [
        ScoreCardEntry(
            label=_label(members[0]),
            n_runs=len(members),
            values={
                # Of given directions only what cosines tell is known.
                name: spread_of(m.value for run in members for m in run.metrics if m.name == name)
                for name in SCORE_CARD
            },
        )
        for members in groups.values()
    ]


def _alike(result: EvaluationResult) -> str:
    """A hash of everything but the seeds."""
    origin = result.made_from
    truth = {k: v for k, v in (origin.get("planted") or origin["truth"]).items() if k != "seed"}
    return hash_of([truth, origin["training"], result.settings])


def _label(result: EvaluationResult) -> str:
    training: dict[str, Any] = result.made_from["training"]
    name = training.get("method", training["architecture"])
    target = f" k{training['target_l0']}" if training.get("target_l0") is not None else ""
    return f"{name} d{training['d_sae']}{target} on {result.made_from['model']}"


def _best_first(entries: Sequence[ScoreCardEntry]) -> list[ScoreCardEntry]:
    return sorted(entries, key=lambda entry: _mean(entry, "frr_090"), reverse=True)


def _mean(entry: ScoreCardEntry, name: str) -> float:
    return entry.values[name].mean or 0.0


def score_card_table(entries: Sequence[ScoreCardEntry]) -> Any:
    """A line for each way of training: mean ± sample standard deviation over seeds."""
    several = len({entry.label.partition(" on ")[2] for entry in entries}) > 1
    return terminal_table(
        "score card: mean ± standard deviation over seeds",
        ["trained", *ON_TERMINAL.values()],
        [
            [
                entry.label if several else entry.label.partition(" on ")[0],
                *(_text(entry.values[name], ".2f", "±", ".2f") for name in ON_TERMINAL),
            ]
            for entry in _best_first(entries)
        ],
    )


def _text(spread: Spread, mean: str = ".3g", between: str = " ± ", sd: str = ".2g") -> str:
    if spread.mean is None:
        return "—"
    return f"{spread.mean:{mean}}" + ("" if spread.sd is None else f"{between}{spread.sd:{sd}}")


def write_card(
    folder: Path, entries: Sequence[ScoreCardEntry], results: Sequence[EvaluationResult]
) -> Path:
    """Write `score_card.json` for programs and `score_card.html` for people; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    made_from = {"dictionaries": {r.dictionary_name: r.dictionary_hash for r in results}}
    card = new_manifest(KIND, seed=None, config=results[0].settings, made_from=made_from)
    card["entries"] = [
        {
            "label": entry.label,
            "n_runs": entry.n_runs,
            "values": {
                name: None if spread.mean is None else {"mean": spread.mean, "sd": spread.sd}
                for name, spread in entry.values.items()
            },
        }
        for entry in entries
    ]
    write_manifest(folder / JSON_FILE, card)
    return write_result_page(folder / PAGE_FILE, _page(_best_first(entries), results[0]))


def _page(ranked: Sequence[ScoreCardEntry], example: EvaluationResult) -> EvaluationResult:
    definitions = {metric.name: metric.definition for metric in example.metrics}
    has_quarters = any(entry.values["frr_quartile_1"].n for entry in ranked)
    return EvaluationResult(
        suite="recovery",
        dictionary_name=f"{len(ranked)} ways of training",
        dictionary_hash="",
        settings=example.settings,
        made_from={},
        metrics=(),
        title="Recovery of planted features",
        subtitle="Every way of training against the same planted features; mean and standard "
        "deviation over seeds.",
        charts=_charts(ranked)[: 2 if has_quarters else 1],
        tables=(
            Table(
                title="Mean ± sample standard deviation over runs",
                columns=("trained", "runs", *SCORE_CARD.values()),
                rows=tuple(
                    (entry.label, entry.n_runs, *map(_text, entry.values.values()))
                    for entry in ranked
                ),
                section="Score card",
            ),
            Table(
                title="Definitions",
                columns=("number", "definition"),
                rows=tuple(
                    (label, definitions[name])
                    for name, label in SCORE_CARD.items()
                    if name in definitions
                ),
                section="What the numbers mean",
            ),
        ),
    )


def _charts(ranked: Sequence[ScoreCardEntry]) -> tuple[Chart, Chart]:
    best, worst = ranked[0], ranked[-1]
    quarters = [f"frr_quartile_{quarter}" for quarter in range(1, 5)]
    falls = [_mean(entry, quarters[0]) - _mean(entry, quarters[-1]) for entry in ranked]
    return (
        _bars(
            ranked,
            ["frr_080", "frr_090", "frr_095"],
            name="recovery",
            title="Features recovered",
            axis="share of true features recovered",
            caption="Share of the true features with a latent whose decoder row has at least this "
            "cosine with them (FRR); error bars are the standard deviation over runs.",
            summary="Bars of the share recovered by way of training: at cosine 0.9 "
            f"{_mean(best, 'frr_090'):.2f} for {best.label}, {_mean(worst, 'frr_090'):.2f} for "
            f"{worst.label}.",
        ),
        _bars(
            ranked,
            quarters,
            name="quarters",
            title="Frequent and rare features",
            axis="share recovered at cosine 0.9",
            caption="The same share within each quarter of the true features by frequency. Where "
            "all features are equally frequent the quarters are arbitrary.",
            summary="Bars of the share recovered in each quarter of feature frequency; from most "
            f"frequent to rarest it falls by up to {max(falls):.2f}.",
        ),
    )


def _bars(
    ranked: Sequence[ScoreCardEntry], metrics: Sequence[str], *, axis: str, **words: Any
) -> Chart:
    """Horizontal bars, a group for each way of training."""
    return Chart(
        x=Axis(title=axis, low=0, high=1.04),
        y=Axis(title="trained"),
        series=tuple(
            Series(
                name=SCORE_CARD[name],
                x=[entry.values[name].mean for entry in ranked],
                y=[entry.label for entry in ranked],
                mark="bars",
                axis="x",
                **error_bars(entry.values[name] for entry in ranked),
            )
            for name in metrics
        ),
        height=140 + 17 * len(metrics) * len(ranked),
        **words,
    )
