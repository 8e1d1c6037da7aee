"""The command `saelab compare`: read the command line, compare, show short tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError

from ..suite import terminal_table
from .config import CompareConfig

if TYPE_CHECKING:
    from .rows import MethodComparison

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
    if any(at.value.mean is not None for at in comparison.compared):
        console.print(_differences(comparison))
    for note in [SPREAD, *comparison.notes]:
        console.print(note, highlight=False)
    out = comparison.config.out
    console.print(f"report: {out / PAGE_FILE}", soft_wrap=True, highlight=False)


def _rows(comparison: MethodComparison) -> Any:
    """A line per method, and under it one per width and target L0."""
    from ..display import percent, shorter, written

    many = len({row.d_sae for row in comparison.rows}) > 1
    spread, shares, costs = (
        {name: heading for name, heading in headings.items() if name in comparison.columns}
        for headings in (WITH_SPREAD, SHARES, COSTS)
    )
    lines = []
    for label, rows in groupby(comparison.rows, lambda row: row.label):
        lines.append([label])
        lines += [
            [
                f"  {f'{row.d_sae:,}, ' if many else ''}k {row.k_text}",
                shorter(row.values["l0_mean"].mean),
                *(written(row.values[name], 3) for name in spread),
                *(percent(row.values[name].mean) for name in shares),
                *(shorter(row.values[name].mean) for name in costs),
            ]
            for row in rows
        ]
    headings = ["method", "L0", *spread.values(), *shares.values(), *costs.values()]
    return terminal_table("", headings, lines, rigid=True)


def _differences(comparison: MethodComparison) -> Any:
    """FVU at common L0: that of the reference, and how far the others are from it."""
    from ..display import written
    from .tables import OUTSIDE

    compared = [at for at in comparison.compared if at.metric == "fvu"]
    points = list(dict.fromkeys((at.d_sae, at.l0) for at in compared))
    many = len({d_sae for d_sae, _ in points}) > 1
    lines = {label: dict.fromkeys(points, "") for label in (at.label for at in compared)}
    for at in compared:
        text = written(at.difference, 4, signed=True)
        if at.value.mean is None:
            text = OUTSIDE
        elif at.label == comparison.reference:
            text = f"({written(at.value, 4)})"
        lines[at.label][at.d_sae, at.l0] = text
    headings = [(f"{d_sae:,} latents,\n" if many else "") + f"L0 {l0:g}" for d_sae, l0 in points]
    return terminal_table(
        "",
        [f"FVU at the same L0: difference to {comparison.reference}", *headings],
        [[label, *cells.values()] for label, cells in lines.items()],
        rigid=True,
    )
