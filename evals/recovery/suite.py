"""The suite "recovery": which planted features a dictionary found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from saelab.formats.evaluation_result import EvaluationResult

from ..suite import Measurement, Suite, evaluate, terminal_table
from .charts import recovery_charts
from .config import RecoveryConfig
from .definitions import recovery_definitions
from .scorecard import score_card, score_card_table

BESIDES = {
    "match_f1": "F1",
    "absorption_rate": "absorbed",
    "split_share": "split",
    "nmse": "NMSE",
    "l0_mean": "L0",
    "dead_fraction": "dead",
}
EXPLANATION = (
    "FRR@c: share of true features with a latent of cosine c or more; own: by a latent of its "
    "own; prec: share of alive latents that are a feature; F1, absorbed and split are of matched "
    "features. The reports define every number."
)


def measure(
    folders: Sequence[Path], outs: Sequence[Path], config: RecoveryConfig
) -> Iterator[Measurement]:
    """Compare dictionaries with what was planted; see `measure_recovery`."""
    from .measure import measure_recovery

    return measure_recovery(folders, outs, config)


def finish(results: Sequence[EvaluationResult], config: RecoveryConfig) -> None:
    """Print what else was measured and the score card of several; write the card if asked to."""
    from rich.console import Console

    console = Console()
    rows = [[r.dictionary_name, *(r.value(name) for name in BESIDES)] for r in results]
    console.print(terminal_table("", ["dictionary", *BESIDES.values()], rows))
    if len(results) > 1 or config.card is not None:
        console.print(score_card_table(score_card(results)))
    console.print(EXPLANATION, highlight=False)
    if config.card is not None:
        from .card_page import write_card

        page = write_card(config.card, score_card(results), results)
        console.print(f"score card: {page}", soft_wrap=True, highlight=False)


SUITE = Suite(
    name="recovery",
    summary="Compare saved dictionaries with the planted features that they were trained on.",
    Config=RecoveryConfig,
    measure=measure,
    definitions=recovery_definitions,
    charts=recovery_charts,
    headline=(
        "frr_080",
        "frr_090",
        "frr_one_to_one_090",
        "mean_max_cosine_features",
        "chance_cosine",
        "precision_090",
        "match_f1",
        "absorption_rate",
        "split_share",
        "nmse",
        "l0_mean",
        "true_l0",
        "dead_fraction",
    ),
    shown={
        "frr_080": "FRR@.8",
        "frr_090": "@.9",
        "frr_095": "@.95",
        "frr_099": "@.99",
        "frr_one_to_one_090": "own@.9",
        "precision_090": "prec@.9",
    },
    jointly=True,
    finish=finish,
)


def run_recovery(folders: Sequence[Path], config: RecoveryConfig) -> list[EvaluationResult]:
    """Evaluate dictionaries; the results in the order of the folders. See `evaluate`."""
    return [result for _, result in evaluate(SUITE, folders, config)]
