"""The tables of a comparison: every number, what it means, and what was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saelab.formats.evaluation_result import Table

from ..suite import Definition
from .numbers import CONSISTENCY, CORE, STEERING, MeasuredCandidate
from .rows import AtCommonL0, ModeRow, Row, decimals_for, written

MODE_HEADINGS = {
    "l0_mean": "L0",
    "fvu": "FVU",
    "loss_recovered_mean": "loss recovered (mean)",
    "loss_recovered_zero": "loss recovered (zero)",
    "kl": "KL (nats per token)",
}
OUTSIDE = "outside its range"

LATENT_USE = (
    "dead_fraction",
    "underused_fraction",
    "effective_latents",
    "zipf_exponent",
    "zipf_offset",
    "zipf_r_squared",
    "zipf_tail_gap",
)
MODE_LABELS = {
    "plain": "plain top-k (default)",
    "threshold": "threshold",
    "gradient_assisted": "gradient-assisted (uses labels)",
    "gradient_shuffled": "control: gradients shuffled across rows",
}


def tables_of(
    found: Sequence[MeasuredCandidate],
    rows: Sequence[Row],
    columns: Mapping[str, Definition],
    compared: Sequence[AtCommonL0],
    reference: str,
    modes: Sequence[ModeRow],
) -> tuple[Table, ...]:
    """Every table of a comparison, in reading order."""
    tables = []
    for title, names in (
        (
            "Reconstruction, sparsity and effect on the model",
            [name for name in CORE if name not in LATENT_USE],
        ),
        ("Use of latents", LATENT_USE),
        (
            "Consistency over seeds, steering, and cost",
            [*CONSISTENCY, *STEERING, "train_seconds", "state_mib"],
        ),
    ):
        if any(name in columns for name in names):
            tables.append(_rows_table(title, rows, columns, names))
    if compared:
        tables.append(_common_table(compared, reference))
    if modes:
        tables.append(_modes_table(modes))
    definitions = [
        (column.name, "ratio" if column.unit == "1" else column.unit, column.text)
        for column in columns.values()
    ]
    dictionaries = [
        (one.name, one.label, one.d_sae, one.k, one.seed, str(one.folder), one.content_hash[:16])
        for one in (each.candidate for each in found)
    ]
    headings = ("dictionary", "method", "d_sae", "k", "seed", "folder", "content hash")
    return (
        *tables,
        Table(
            title="Units and definitions",
            columns=("number", "unit", "definition"),
            rows=tuple(definitions),
            section="What every number means",
        ),
        Table(
            title="What was compared",
            columns=headings,
            rows=tuple(dictionaries),
            section="Dictionaries",
        ),
    )


def _rows_table(
    title: str, rows: Sequence[Row], columns: Mapping[str, Definition], names: Sequence[str]
) -> Table:
    """A row per method, width and target L0, with the given columns that anything is known of."""
    shown = [name for name in names if name in columns]
    decimals = {name: _decimals(rows, name, columns[name]) for name in shown}
    return Table(
        title=title,
        columns=("method", "d_sae", "k", "seeds", *(columns[name].name for name in shown)),
        rows=tuple(
            (
                row.label,
                f"{row.d_sae:,}",
                row.k_text,
                str(len(row.members)),
                *(written(row.values[name], decimals[name]) for name in shown),
            )
            for row in rows
        ),
        section="Numbers",
    )


def _decimals(rows: Sequence[Row], name: str, column: Definition) -> int:
    """The same for a whole column: four of a ratio, else four digits of the largest mean."""
    if column.unit == "1":
        return 4
    means = [abs(row.values[name].mean or 0.0) for row in rows]
    return decimals_for(max(means, default=0.0))


def _common_table(compared: Sequence[AtCommonL0], reference: str) -> Table:
    """A row per width, L0 and method: each metric there, and its difference to the reference."""
    headings = ["method", "d_sae", "L0"]
    for metric in dict.fromkeys(at.metric for at in compared):
        heading = CORE[metric]
        headings += [heading, f"{heading}: difference to {reference}", "seeds"]
    cells: dict[tuple[int, float, str], list[str]] = {}
    for at in compared:
        start = [at.label, f"{at.d_sae:,}", f"{at.l0:g}"]
        row = cells.setdefault((at.d_sae, at.l0, at.label), start)
        seeds = f"{len(at.seeds)} of {len(at.seeds) + len(at.outside)}"
        if at.value.mean is None:
            row += [OUTSIDE, OUTSIDE, seeds]
        else:
            differs = (
                "reference" if at.label == reference else written(at.difference, 4, signed=True)
            )
            row += [written(at.value, 4), differs, seeds]
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
        title="Inference modes of the same dictionaries. The gradient-assisted mode reads the true "
        "next tokens through the gradient of the loss: it is no measure of a dictionary one could "
        "use without labels. Its control takes the gradients of other rows; a gain over plain "
        "top-k that the control lacks comes from the labels. All modes are measured on the tokens "
        "on which losses are measured.",
        columns=("method", "d_sae", "k", "mode", *MODE_HEADINGS.values()),
        rows=tuple(
            (
                one.row.label,
                f"{one.row.d_sae:,}",
                one.row.k_text,
                MODE_LABELS.get(one.mode, one.mode),
                *(written(one.values[name]) for name in MODE_HEADINGS),
            )
            for one in modes
        ),
        section="Other inference modes (not in any chart)",
    )
