"""The command `saelab eval dark-matter`: read the command line, evaluate, show a short table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError

from .config import DarkMatterConfig

if TYPE_CHECKING:
    from .suite import SuiteOutcome

PROGRAM = "saelab eval dark-matter"
SHOWN = {
    "l0_mean": "L0",
    "fvu": "FVU",
    "fvu_nonlinear": "FVU\nnonl.",
    "error_r_squared": "R²\nerror",
    "error_explained": "pooled",
    "norm_r_squared": "R²\nnorm",
    "norm_test_nonlinear_error": "norm\ntest",
    "pursuit_fvu": "pursuit\nFVU",
    "pursuit_fvu_nonlinear": "FVU\nnonl.",
}
"""Headings of the terminal's table, which is narrow; the pages have every number."""


@dataclass(frozen=True, kw_only=True)
class DarkMatterCommand:
    """Take apart what dictionaries do not explain: linear and nonlinear error, and what each is."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of saved dictionaries of one hook point; several make a family."""
    config: tyro.conf.OmitArgPrefixes[DarkMatterConfig] = field(
        default_factory=DarkMatterConfig, metadata={"flatten": True}
    )
    """Settings."""


CONFIG = DarkMatterCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab eval dark-matter`.

    Raises:
        SaelabError: whatever the user can put right; see `run_dark_matter`.
    """
    command = parse_arguments(DarkMatterCommand, arguments, program=PROGRAM)
    if not command.dictionaries:
        raise ConfigError(f"no dictionary was given: type `{PROGRAM} FOLDER [FOLDER …]`")
    from .suite import run_dark_matter

    show(run_dark_matter(command.dictionaries, command.config))


def show(outcome: SuiteOutcome) -> None:
    """Print one line per dictionary, what the family could not show, and where the reports are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("dictionary", overflow="fold")
    named = {metric.name for result in outcome.results for metric in result.metrics}
    shown = {name: label for name, label in SHOWN.items() if name in named}
    for label in shown.values():
        table.add_column(label, justify="right", no_wrap=True)
    for result in outcome.results:
        known = {metric.name: metric.value for metric in result.metrics}
        values = [known.get(name) for name in shown]
        cells = ["undefined" if value is None else f"{value:.3g}" for value in values]
        table.add_row(result.dictionary_name, *cells)
    console = Console()
    console.print(table)
    for note in outcome.notes:
        console.print(note, highlight=False)
    for report in outcome.reports:
        console.print(f"report: {report}", soft_wrap=True, highlight=False)
