"""The tables of a comparison, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .common_l0 import AtCommonL0
from .definitions import Column
from .rows import MODE_METRICS, ModeRow, Row
from .spread import decimals_for, written

HEADINGS = {"fvu": "FVU", "loss_recovered_mean": "loss recovered (mean)"}
MODE_HEADINGS = {
    "l0_mean": "L0",
    "fvu": "FVU",
    "loss_recovered_mean": "loss recovered (mean)",
    "loss_recovered_zero": "loss recovered (zero)",
    "kl": "KL (nats per token)",
}
OUTSIDE = "outside its range"

Table = tuple[list[str], list[list[str]]]
"""Headings, and rows of text."""


def rows_table(rows: Sequence[Row], columns: Mapping[str, Column], names: Sequence[str]) -> Table:
    """A row per method, width and target L0, with the given columns that anything is known of."""
    shown = [name for name in names if name in columns]
    headings = ["method", "d_sae", "k", "seeds", *(columns[name].heading for name in shown)]
    decimals = {name: _decimals(rows, name, columns[name]) for name in shown}
    return headings, [
        [
            row.label,
            f"{row.d_sae:,}",
            row.k_text,
            str(len(row.members)),
            *(written(row.values[name], decimals[name]) for name in shown),
        ]
        for row in rows
    ]


def _decimals(rows: Sequence[Row], name: str, column: Column) -> int:
    """The same for a whole column: four of a ratio, else four digits of the largest mean."""
    if column.unit == "1":
        return 4
    means = [abs(row.values[name].mean or 0.0) for row in rows]
    return decimals_for(max(means, default=0.0))


def common_table(compared: Sequence[AtCommonL0], reference: str) -> Table:
    """A row per width, L0 and method: each metric there, and its difference to the reference."""
    metrics = list(dict.fromkeys(one.metric for one in compared))
    headings = ["method", "d_sae", "L0"]
    for metric in metrics:
        heading = HEADINGS[metric]
        headings += [heading, f"{heading}: difference to {reference}", "seeds"]
    cells: dict[tuple[int, float, str], list[str]] = {}
    for one in compared:
        start = [one.label, f"{one.d_sae:,}", f"{one.l0:g}"]
        row = cells.setdefault((one.d_sae, one.l0, one.label), start)
        seeds = f"{len(one.seeds)} of {len(one.seeds) + len(one.outside)}"
        if one.value.mean is None:
            row += [OUTSIDE, OUTSIDE, seeds]
        elif one.label == reference:
            row += [written(one.value, 4), "reference", seeds]
        else:
            row += [written(one.value, 4), written(one.difference, 4, signed=True), seeds]
    order = list(dict.fromkeys(one.label for one in compared))
    keys = sorted(cells, key=lambda key: (key[0], key[1], order.index(key[2])))
    return headings, [cells[key] for key in keys]


def modes_table(modes: Sequence[ModeRow], labels: Mapping[str, str]) -> Table:
    """A row per method, width, target L0 and inference mode.

    Args:
        labels: what each mode is called.
    """
    headings = ["method", "d_sae", "k", "mode", *(MODE_HEADINGS[name] for name in MODE_METRICS)]
    return headings, [
        [
            one.row.label,
            f"{one.row.d_sae:,}",
            one.row.k_text,
            labels.get(one.mode, one.mode),
            *(written(one.values[name]) for name in MODE_METRICS),
        ]
        for one in modes
    ]
