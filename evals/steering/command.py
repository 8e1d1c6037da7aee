"""The command `saelab eval steering`: read the command line, steer, show a short table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult

from .config import SteeringConfig

PROGRAM = "saelab eval steering"


@dataclass(frozen=True, kw_only=True)
class SteeringCommand:
    """Add latents in arbitrary contexts: size and consistency of their effect on the logits."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of saved dictionaries."""
    config: tyro.conf.OmitArgPrefixes[SteeringConfig] = field(
        default_factory=SteeringConfig, metadata={"flatten": True}
    )
    """Settings."""


CONFIG = SteeringCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab eval steering`.

    Raises:
        SaelabError: whatever the user can put right; see `run_steering`.
    """
    command = parse_arguments(SteeringCommand, arguments, program=PROGRAM)
    if not command.dictionaries:
        raise ConfigError(f"no dictionary was given: type `{PROGRAM} FOLDER [FOLDER …]`")
    from ..subjects import result_folders
    from .suite import REPORT_FILE, RESULT_FILE, run_steering

    config = command.config
    places = result_folders(
        command.dictionaries, config.out, RESULT_FILE, overwrite=config.overwrite
    )
    results = run_steering(command.dictionaries, config)
    show(results, [place / REPORT_FILE for place in places])


def show(results: Sequence[EvaluationResult], reports: Sequence[Path]) -> None:
    """Print a line per dictionary and strength, and where the reports are."""
    from rich.console import Console
    from rich.table import Table

    from .result import headline

    table = Table(caption="mean effects in logits; random: of random directions")
    table.add_column("dictionary")
    for label in ("strength", "size", "random", "consistency", "random", "above 95 % of random"):
        table.add_column(label, justify="right")
    for result in results:
        name = result.dictionary_name
        for strength in result.settings["strengths"]:
            size = headline(result, "size", strength)
            consistency = headline(result, "consistency", strength)
            means = [one[kind] for one in (size, consistency) for kind in ("mean", "random_mean")]
            share = consistency["share_above_random"]
            table.add_row(name, f"{strength:g}", *(f"{v:.3f}" for v in means), f"{share:.2f}")
            name = ""
    console = Console()
    console.print(table)
    for report in reports:
        console.print(f"report: {report}", soft_wrap=True, highlight=False)
