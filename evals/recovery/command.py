"""The command `saelab eval recovery`: read the command line, evaluate, show the score card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult

from .config import RecoveryConfig
from .scorecard import ScoreCardEntry, score_card

if TYPE_CHECKING:
    from rich.table import Table

PROGRAM = "saelab eval recovery"
RECOVERED = {
    "frr_080": "FRR@.8",
    "frr_090": "@.9",
    "frr_095": "@.95",
    "frr_099": "@.99",
    "frr_one_to_one_090": "own@.9",
    "precision_090": "prec@.9",
}
BESIDES = {
    "match_f1": "F1",
    "absorption_rate": "absorbed",
    "split_share": "split",
    "nmse": "NMSE",
    "l0_mean": "L0",
    "dead_fraction": "dead",
}
CARD_COLUMNS = {
    "frr_080": "FRR@.8",
    "frr_090": "@.9",
    "frr_quartile_4": "rarest",
    "precision_090": "prec@.9",
    "l0_mean": "L0",
}
EXPLANATION = (
    "FRR@c: share of true features with a latent of cosine c or more; own: by a latent of its "
    "own; prec: share of alive latents that are a feature; F1, absorbed and split are of matched "
    "features. The reports define every number."
)


@dataclass(frozen=True, kw_only=True)
class RecoveryCommand:
    """Compare saved dictionaries with the planted features that they were trained on."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of dictionaries trained on a cache of `saelab synthetic`."""
    config: tyro.conf.OmitArgPrefixes[RecoveryConfig] = field(
        default_factory=RecoveryConfig, metadata={"flatten": True}
    )
    """Settings."""


CONFIG = RecoveryCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab eval recovery`.

    Raises:
        SaelabError: whatever the user can put right; see `run_recovery`.
    """
    command = parse_arguments(RecoveryCommand, arguments, program=PROGRAM)
    if not command.dictionaries:
        raise ConfigError(f"no dictionary was given: type `{PROGRAM} FOLDER [FOLDER …]`")
    from ..subjects import result_folders
    from .suite import REPORT_FILE, RESULT_FILE, run_recovery

    config = command.config
    places = result_folders(
        command.dictionaries, config.out, RESULT_FILE, overwrite=config.overwrite
    )
    results = run_recovery(command.dictionaries, config)
    if config.card is None:
        show(results, [place / REPORT_FILE for place in places])
    else:
        from .card_page import write_card

        page = write_card(config.card, score_card(results), results)
        _show_card(results)
        print(f"score card: {page}")


def show(results: Sequence[EvaluationResult], reports: Sequence[Path]) -> None:
    """Print lines per dictionary, the score card of several, and where the reports are."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for shown in (RECOVERED, BESIDES):
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("dictionary", overflow="fold")
        for label in shown.values():
            table.add_column(label, justify="right", no_wrap=True)
        for result in results:
            values = [result.value(name) for name in shown]
            table.add_row(result.dictionary_name, *(_cell(value) for value in values))
        console.print(table)
    if len(results) > 1:
        _show_card(results)
    else:
        console.print(EXPLANATION, highlight=False)
    for report in reports:
        console.print(f"report: {report}", soft_wrap=True, highlight=False)


def _show_card(results: Sequence[EvaluationResult]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_score_card_table(score_card(results)))
    console.print(EXPLANATION, highlight=False)


def _score_card_table(entries: Sequence[ScoreCardEntry]) -> Table:
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
        cells = [_spread(entry.values[name]) for name in CARD_COLUMNS]
        label = entry.label.partition(" on ")[0] if len(origins) == 1 else entry.label
        table.add_row(label, *cells)
    return table


def _spread(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "—"
    return f"{found[0]:.2f}" + ("" if found[1] is None else f"±{found[1]:.2f}")


def _cell(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.3f}" if value < 1 else f"{value:.4g}"
