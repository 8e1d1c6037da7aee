"""The command `saelab eval consistency`: read the command line, compare, show short tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult

from .config import ConsistencyConfig

PROGRAM = "saelab eval consistency"
SHOWN = {
    "mcs_mean": "MCS",
    "mcs_share": "above",
    "mcs_share_top_max_activation": "top act.",
    "mcs_share_top_z_score": "top Z",
    "one_to_one_mean": "1:1",
    "one_to_one_share": "1:1 above",
    "mcs_random": "random",
}


@dataclass(frozen=True, kw_only=True)
class ConsistencyCommand:
    """Compare the latents of several seeds, or of several methods, with one another."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of saved dictionaries: at least two."""
    config: tyro.conf.OmitArgPrefixes[ConsistencyConfig] = field(
        default_factory=ConsistencyConfig, metadata={"flatten": True}
    )
    """Settings."""


CONFIG = ConsistencyCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab eval consistency`.

    Raises:
        SaelabError: whatever the user can put right; see `run_consistency`.
    """
    command = parse_arguments(ConsistencyCommand, arguments, program=PROGRAM)
    if not command.dictionaries:
        raise ConfigError(f"no dictionary was given: type `{PROGRAM} FOLDER FOLDER [FOLDER …]`")
    from ..subjects import result_folders
    from .suite import REPORT_FILE, RESULT_FILE, run_consistency

    config = command.config
    places = result_folders(
        command.dictionaries, config.out, RESULT_FILE, overwrite=config.overwrite
    )
    results = run_consistency(command.dictionaries, config)
    show(results, [place / REPORT_FILE for place in places])


def show(results: Sequence[EvaluationResult], reports: Sequence[Path]) -> None:
    """Print a table per group, the matrix between groups, and where each group's page is."""
    from rich.console import Console

    console = Console()
    first_page: dict[str, Path] = {}
    for result, page in zip(results, reports, strict=True):
        first_page.setdefault(result.settings["group"], page)
    for group in first_page:
        console.print(_numbers(group, [r for r in results if r.settings["group"] == group]))
    if "across" in results[0].figure_data:
        console.print(_matrix(results[0]))
    for group, page in first_page.items():
        console.print(f"report on {group}: {page}", soft_wrap=True, highlight=False)


def _numbers(group: str, results: Sequence[EvaluationResult]):
    from rich.table import Table

    settings = results[0].settings
    caption = (
        f"above: share with MCS > {settings['threshold']:g}; top: the same among the top "
        f"{settings['top_fraction']:g} by max activation and Z-score; 1:1: cosine with the "
        "one-to-one partner; random: MCS of random directions"
    )
    table = Table(title=group, caption=caption)
    table.add_column("run")
    named = {metric.name for metric in results[0].metrics}
    shown = {name: label for name, label in SHOWN.items() if name in named}
    for label in shown.values():
        table.add_column(label, justify="right")
    for result in results:
        cells = [f"{result.value(name):.4g}" for name in shown]
        table.add_row(result.settings["run"], *cells)
    return table


def _matrix(result: EvaluationResult):
    from rich.table import Table

    data = result.figure_data["across"]
    table = Table(title="mean MCS of the row's latents in the column's dictionaries")
    table.add_column("")
    for place, _ in enumerate(data["groups"]):
        table.add_column(str(place + 1), justify="right")
    for place, (group, row) in enumerate(zip(data["groups"], data["mcs_mean"], strict=True)):
        cells = ["" if value is None else f"{value:.3f}" for value in row]
        table.add_row(f"{place + 1} {group}", *cells)
    return table
