"""The command `saelab compare`: read the command line, compare, show short tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError

from .config import CompareConfig

if TYPE_CHECKING:
    from .suite import MethodComparison

PROGRAM = "saelab compare"
WITH_SPREAD = {"fvu": "FVU", "loss_recovered_mean": "loss recovered\n(mean ablation)"}
SHARES = {
    "dead_fraction": "dead",
    "underused_fraction": "under-\nused",
    "mcs_share": "found\nagain",
}
COSTS = {"train_seconds": "train\ns"}
"""Headings of the terminal's table, which is narrow; the page has every number."""


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Compare training methods in one report: what is missing is evaluated, what exists is used."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Runs of `saelab train`, or folders of single dictionaries: of one model and hook point."""
    config: tyro.conf.OmitArgPrefixes[CompareConfig] = field(
        default_factory=CompareConfig, metadata={"flatten": True}
    )
    """Settings."""


CONFIG = CompareCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab compare`.

    Raises:
        SaelabError: whatever the user can put right; see `run_compare`.
    """
    command = parse_arguments(CompareCommand, arguments, program=PROGRAM)
    if not command.runs:
        raise ConfigError(f"no run was given: type `{PROGRAM} RUN [RUN …]`")
    from .suite import run_compare

    show(run_compare(command.runs, command.config))


def show(comparison: MethodComparison) -> None:
    """Print a row per method, width and L0, the methods at common L0, and where the report is."""
    from rich.console import Console

    from .numbers import SPREAD
    from .suite import PAGE_FILE

    console = Console()
    console.print(_rows(comparison))
    if any(one.value.mean is not None for one in comparison.compared):
        console.print(_differences(comparison))
    for note in [SPREAD, *comparison.result.notes]:
        console.print(note, highlight=False)
    out = comparison.config.out
    console.print(f"report: {out / PAGE_FILE}", soft_wrap=True, highlight=False)


def _rows(comparison: MethodComparison):
    """A line per method, and under it one per width and target L0."""
    from .rows import percent, shorter, written

    many = len({row.d_sae for row in comparison.rows}) > 1
    spread = {name: text for name, text in WITH_SPREAD.items() if name in comparison.columns}
    shares = {name: text for name, text in SHARES.items() if name in comparison.columns}
    costs = {name: text for name, text in COSTS.items() if name in comparison.columns}
    table = _table("method", ["L0", *spread.values(), *shares.values(), *costs.values()])
    for label, rows in groupby(comparison.rows, lambda row: row.label):
        table.add_row(label)
        for row in rows:
            table.add_row(
                f"  {f'{row.d_sae:,}, ' if many else ''}k {row.k_text}",
                shorter(row.values["l0_mean"].mean),
                *(written(row.values[name], 3) for name in spread),
                *(percent(row.values[name].mean) for name in shares),
                *(shorter(row.values[name].mean) for name in costs),
            )
    return table


def _differences(comparison: MethodComparison):
    """FVU at common L0: the reference's own, and how far the others are from it."""
    from .rows import written
    from .tables import OUTSIDE

    at = [one for one in comparison.compared if one.metric == "fvu"]
    places = list(dict.fromkeys((one.d_sae, one.l0) for one in at))
    many = len({d_sae for d_sae, _ in places}) > 1
    table = _table(
        f"FVU at the same L0: difference to {comparison.reference}",
        [(f"{d_sae:,} latents,\n" if many else "") + f"L0 {l0:g}" for d_sae, l0 in places],
    )
    for label in dict.fromkeys(one.label for one in at):
        cells = dict.fromkeys(places, "")
        for one in at:
            if one.label != label:
                continue
            if one.value.mean is None:
                text = OUTSIDE
            elif label == comparison.reference:
                text = f"({written(one.value, 4)})"
            else:
                text = written(one.difference, 4, signed=True)
            cells[one.d_sae, one.l0] = text
        table.add_row(label, *cells.values())
    return table


def _table(first: str, headings: Sequence[str]):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
