"""The command `saelab eval core`: read the command line, evaluate, show a short table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult

from .config import CoreConfig

PROGRAM = "saelab eval core"
SHOWN = {
    "fvu": "FVU",
    "l0_mean": "L0",
    "loss_recovered_zero": "recovered (zero)",
    "loss_recovered_mean": "recovered (mean)",
    "kl": "KL (nats)",
    "dead_fraction": "dead",
}


@dataclass(frozen=True, kw_only=True)
class CoreCommand:
    """Judge saved dictionaries on held-out text: reconstruction, sparsity, effect on the model."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of saved dictionaries."""
    config: tyro.conf.OmitArgPrefixes[CoreConfig] = field(
        default_factory=CoreConfig, metadata={"flatten": True}
    )
    """Settings."""


CONFIG = CoreCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab eval core`.

    Raises:
        SaelabError: whatever the user can put right; see `run_core`.
    """
    command = parse_arguments(CoreCommand, arguments, program=PROGRAM)
    if not command.dictionaries:
        raise ConfigError(f"no dictionary was given: type `{PROGRAM} FOLDER [FOLDER …]`")
    from ..subjects import result_folders
    from .suite import REPORT_FILE, RESULT_FILE, run_core

    config = command.config
    places = result_folders(
        command.dictionaries, config.out, RESULT_FILE, overwrite=config.overwrite
    )
    results = run_core(command.dictionaries, config)
    show(results, [place / REPORT_FILE for place in places])


def show(results: Sequence[EvaluationResult], reports: Sequence[Path]) -> None:
    """Print one line per dictionary, and where the reports are."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("dictionary")
    for label in SHOWN.values():
        table.add_column(label, justify="right")
    for result in results:
        values = [result.value(name) for name in SHOWN]
        cells = ["undefined" if value is None else f"{value:.4g}" for value in values]
        table.add_row(result.dictionary_name, *cells)
    console = Console()
    console.print(table)
    for report in reports:
        console.print(f"report: {report}", soft_wrap=True, highlight=False)
