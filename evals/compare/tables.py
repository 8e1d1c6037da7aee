"""The tables of a comparison: every number, what it means, and what was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from saelab.formats.evaluation_result import IN_SHORT, Table
from saelab.stats.bootstrap import UNDEFINED

from ..core.charts import MODE_COLUMNS, MODE_LABELS, WARNING
from ..definitions import Definition
from ..display import bracketed, decimals_for, percent, shorter, written
from .numbers import COMPUTED, HEADINGS, SPREAD
from .rows import AtCommonL0, MethodComparison, ModeRow, Row

OUTSIDE = "outside its range"
COSTS = ("train_seconds", "state_mib")
LATENT_USE = ("dead_fraction", *(name for name in HEADINGS[COMPUTED] if name not in COSTS))
SECTIONS = {
    "Reconstruction, sparsity and effect on the model": [
        name for name in HEADINGS["core"] if name not in LATENT_USE
    ],
    "Use of latents": LATENT_USE,
    "Consistency over seeds, steering, and cost": [
        *HEADINGS["consistency"],
        *HEADINGS["steering"],
        *COSTS,
    ],
}
WITH_SPREAD = {"fvu": "FVU", "loss_recovered_mean": "recovered\n(mean)"}
SHARES = {"dead_fraction": "dead", "underused_fraction": "underused", "mcs_share": "found\nagain"}
"""Headings of the table in short, which is narrow enough for a terminal."""


def tables_of(comparison: MethodComparison) -> tuple[Table, ...]:
    """Every table of a comparison, in reading order."""
    columns = comparison.columns
    tables = [_short_table(comparison)]
    for metric in dict.fromkeys(at.metric for at in comparison.compared):
        compared = [at for at in comparison.compared if at.metric == metric]
        if any(at.value.mean is not None for at in compared):
            tables.append(_differences_table(compared, comparison.reference))
    tables += [
        _rows_table(title, comparison.rows, columns, [name for name in names if name in columns])
        for title, names in SECTIONS.items()
        if any(name in columns for name in names)
    ]
    if comparison.compared:
        tables.append(_common_table(comparison.compared, comparison.reference))
    if comparison.modes:
        tables.append(_modes_table(comparison.modes))
    candidates = [member.candidate for member in comparison.members]
    return (
        *tables,
        Table(
            title="What was compared",
            columns=("dictionary", "method", "d_sae", "k", "seed", "folder", "content hash"),
            rows=tuple(
                (c.name, c.label, c.d_sae, c.k, c.seed, str(c.folder), c.content_hash[:16])
                for c in candidates
            ),
            section="Dictionaries",
        ),
    )


def _short_table(comparison: MethodComparison) -> Table:
    """A line per method, and under it one per width and target L0."""
    many = len({row.d_sae for row in comparison.rows}) > 1
    spread, shares, seconds = (
        {name: heading for name, heading in headings.items() if name in comparison.columns}
        for headings in (WITH_SPREAD, SHARES, {"train_seconds": "train\ns"})
    )
    headings = ("method", "L0", *spread.values(), *shares.values(), *seconds.values())
    lines = []
    for label, rows in groupby(comparison.rows, lambda row: row.label):
        lines.append((label, *[""] * (len(headings) - 1)))
        lines += [
            (
                f"  {f'{row.d_sae:,}, ' if many else ''}k {row.k_text}",
                shorter(row.values["l0_mean"].mean),
                *(written(row.values[name], 3) for name in spread),
                *(percent(row.values[name].mean) for name in shares),
                *(shorter(row.values[name].mean) for name in seconds),
            )
            for row in rows
        ]
    title = "Methods, widths and target L0"
    return Table(title=title, columns=headings, rows=tuple(lines), section=IN_SHORT, note=SPREAD)


def _differences_table(compared: Sequence[AtCommonL0], reference: str) -> Table:
    """A metric at common L0: that of the reference, and how far the others are from it."""
    points = list(dict.fromkeys((at.d_sae, at.l0) for at in compared))
    many = len({d_sae for d_sae, _ in points}) > 1
    lines = {at.label: dict.fromkeys(points, "") for at in compared}
    for at in compared:
        text = written(at.difference, 4, signed=True) + bracketed(at.documents, 4)
        if at.value.mean is None:
            text = OUTSIDE
        elif at.label == reference:
            text = f"({written(at.value, 4)})"
        lines[at.label][at.d_sae, at.l0] = text
    heading = HEADINGS["core"][compared[0].metric]
    title = f"{heading[0].upper()}{heading[1:]} at the same L0: difference to {reference}"
    headings = [(f"{d_sae:,} latents,\n" if many else "") + f"L0\n{l0:g}" for d_sae, l0 in points]
    return Table(
        title=title,
        columns=(title, *headings),
        rows=tuple((label, *cells.values()) for label, cells in lines.items()),
        section=IN_SHORT,
    )


def _rows_table(
    title: str, rows: Sequence[Row], columns: Mapping[str, Definition], names: Sequence[str]
) -> Table:
    """A row per method, width and target L0, with the given columns.

    A column has the same decimals throughout: four of a ratio, else four digits of the largest.
    """
    largest = {name: max(abs(row.values[name].mean or 0.0) for row in rows) for name in names}
    decimals = {n: 4 if columns[n].unit == "1" else decimals_for(largest[n]) for n in names}
    return Table(
        title=title,
        columns=("method", "d_sae", "k", "seeds", *(columns[name].name for name in names)),
        rows=tuple(
            (
                row.label,
                f"{row.d_sae:,}",
                row.k_text,
                str(len(row.members)),
                *(
                    written(row.values[name], decimals[name])
                    + bracketed(row.documents.get(name, UNDEFINED), decimals[name])
                    for name in names
                ),
            )
            for row in rows
        ),
        section="Numbers",
    )


def _common_table(compared: Sequence[AtCommonL0], reference: str) -> Table:
    """A row per width, L0 and method: each metric there, and its difference to the reference."""
    headings = ["method", "d_sae", "L0"]
    for metric in dict.fromkeys(at.metric for at in compared):
        heading = HEADINGS["core"][metric]
        headings += [heading, f"{heading}: difference to {reference}", "seeds"]
    cells: dict[tuple[int, float, str], list[str]] = {}
    for at in compared:
        start = [at.label, f"{at.d_sae:,}", f"{at.l0:g}"]
        row = cells.setdefault((at.d_sae, at.l0, at.label), start)
        difference = written(at.difference, 4, signed=True) + bracketed(at.documents, 4)
        if at.value.mean is None:
            row += [OUTSIDE, OUTSIDE]
        else:
            row += [written(at.value, 4), "reference" if at.label == reference else difference]
        row.append(f"{len(at.seeds)} of {len(at.seeds) + len(at.outside)}")
    order = list(dict.fromkeys(at.label for at in compared))
    keys = sorted(cells, key=lambda key: (key[0], key[1], order.index(key[2])))
    return Table(
        title="Methods at the same measured L0. Each number is interpolated, linear in log L0, "
        f"between the points of the same seed; differences to {reference} are paired by seed. A "
        "method whose points do not reach an L0 from both sides has no number there. “Seeds” are "
        "those inside their range.",
        columns=tuple(headings),
        rows=tuple(tuple(cells[key]) for key in keys),
        section="At the same L0",
    )


def _modes_table(modes: Sequence[ModeRow]) -> Table:
    """A row per method, width, target L0 and inference mode."""
    return Table(
        title=f"Inference modes of the same dictionaries. {WARNING} All modes are measured on the "
        "tokens on which losses are measured.",
        columns=("method", "d_sae", "k", "mode", *MODE_COLUMNS.values()),
        rows=tuple(
            (
                mode.row.label,
                f"{mode.row.d_sae:,}",
                mode.row.k_text,
                MODE_LABELS.get(mode.mode, mode.mode),
                *(written(mode.values[name]) for name in MODE_COLUMNS),
            )
            for mode in modes
        ),
        section="Other inference modes (not in any chart)",
    )
