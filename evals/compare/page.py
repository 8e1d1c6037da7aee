"""The HTML page of a comparison: pictures first, then every number, then what each means."""

from __future__ import annotations

from pathlib import Path

from saelab.report import Report
from saelab.report.compare_figures import comparison_figures

from ..core.charts import MODE_LABELS, WARNING
from .definitions import CONSISTENCY, CORE, SPREAD, STEERING
from .result import JSON_FILE, PAGE_FILE, Comparison
from .rows import labels_in_order
from .tables import common_table, modes_table, rows_table

LATENT_USE = (
    "dead_fraction",
    "underused_fraction",
    "effective_latents",
    "zipf_exponent",
    "zipf_offset",
    "zipf_r_squared",
    "zipf_tail_gap",
)
BESIDE = (*CONSISTENCY, *STEERING, "train_seconds", "state_mib")


def write_page(comparison: Comparison) -> Path:
    """Write compare.html.

    Raises:
        ArtifactError: a figure cannot be drawn from its data.
    """
    origin, found = comparison.origin, comparison.found
    names = labels_in_order(found)
    report = Report(
        f"{len(names)} training {'method' if len(names) == 1 else 'methods'} compared",
        f"{len(found)} dictionaries at {origin['hook_point']} of {origin['model']}: "
        f"{', '.join(names)}. Held-out part of {origin['text'].get('source')}, contexts of "
        f"{origin['context_length']} tokens.",
    )
    for note in comparison.notes:
        report.add_text(note)
    report.add_heading("Figures")
    out = str(comparison.config.out / JSON_FILE)
    report.add_figures(comparison_figures(comparison.figures, out))
    _add_tables(report, comparison)
    report.add_heading("What every number means").add_table(
        "Units and definitions",
        ["number", "unit", "definition"],
        [
            [column.heading, "ratio" if column.unit == "1" else column.unit, column.definition]
            for column in comparison.columns.values()
        ],
    )
    report.add_heading("Dictionaries").add_table(
        "What was compared",
        ["dictionary", "method", "d_sae", "k", "seed", "folder", "content hash"],
        [
            [
                one.candidate.name,
                one.candidate.label,
                one.candidate.d_sae,
                one.candidate.k,
                one.candidate.seed,
                str(one.candidate.folder),
                one.candidate.content_hash[:16],
            ]
            for one in found
        ],
    )
    return report.write(comparison.config.out / PAGE_FILE)


def _add_tables(report: Report, comparison: Comparison) -> None:
    rows, columns = comparison.rows, comparison.columns
    report.add_heading("Numbers").add_text(SPREAD)
    core = [name for name in CORE if name not in LATENT_USE]
    for caption, names in (
        ("Reconstruction, sparsity and effect on the model", core),
        ("Use of latents", LATENT_USE),
        ("Consistency over seeds, steering, and cost", BESIDE),
    ):
        headings, cells = rows_table(rows, columns, names)
        if len(headings) > 4:
            report.add_table(caption, headings, cells)
    if comparison.compared:
        headings, cells = common_table(comparison.compared, comparison.reference)
        report.add_heading("At the same L0").add_text(
            "Each number is interpolated, linear in log L0, between the points of the same seed; "
            f"differences to {comparison.reference} are paired by seed. A method whose points do "
            "not reach an L0 from both sides has no number there. “Seeds” are those inside their "
            "range."
        )
        report.add_table("Methods at the same measured L0", headings, cells)
    if comparison.modes:
        report.add_heading("Other inference modes (not in any figure above)").add_text(
            f"{WARNING} All modes are measured on the tokens on which losses are measured."
        )
        headings, cells = modes_table(comparison.modes, MODE_LABELS)
        report.add_table("Inference modes of the same dictionaries", headings, cells)
