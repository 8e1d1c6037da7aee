"""`run_compare`: evaluate what is missing of every dictionary, and make one report of all.

Everything that can be wrong is checked before the first forward pass. The suites write their own
results beside each dictionary as they go, so a comparison that is stopped loses at most the part
being evaluated; the report is written when all numbers are there, the JSON last.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saelab.config import to_plain
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import (
    COMPARISON_FILE,
    COMPARISON_KIND,
    EvaluationResult,
    write_comparison,
)
from saelab.formats.files import sha256_of
from saelab.formats.lock import writer_lock
from saelab.formats.manifest import read_manifest
from saelab.report.result_page import write_result_page

from ..suite import write_rows
from .candidates import Candidate, check_comparable, notes_on, read_candidates
from .charts import charts_of
from .config import CompareConfig
from .jobs import RESULTS_FOLDER, suite_results, without_live_latents
from .numbers import SPREAD, Results, columns_of, measured
from .rows import (
    MethodComparison,
    Row,
    compare_at_common_l0,
    labels_in_order,
    mode_rows_of,
    reference_label,
    rows_of,
)
from .tables import tables_of

logger = logging.getLogger(__name__)

PARQUET_FILE = "compare.parquet"
PAGE_FILE = "compare.html"
SHARED = ("model", "model_hash", "hook_point", "text", "text_hash", "context_length")


def run_compare(folders: Sequence[Path], config: CompareConfig) -> MethodComparison:
    """Compare dictionaries; writes compare.json, .parquet and .html into `config.out`.

    Args:
        folders: runs of `saelab train`, which stand for all their dictionaries, or dictionaries.
        config: settings.

    Raises:
        ConfigError: nothing to compare, dictionaries that cannot be compared, results of other
            settings, or a comparison of other dictionaries in `config.out`.
        ArtifactError: a run that is not complete, or something damaged.
        SaelabError: whatever the suites refuse.
    """
    if not folders:
        raise ConfigError("no run was given: name at least one run of `saelab train`")
    candidates = read_candidates(folders, config)
    check_comparable(candidates)
    _check_out(candidates, config)
    with writer_lock(config.out):
        comparison = assemble(candidates, suite_results(candidates, config), config)
        result = _result(comparison)
        # An old comparison stays until the new one replaces it: stopping here loses none.
        write_rows(config.out / PARQUET_FILE, _parquet_columns(comparison))
        write_result_page(config.out / PAGE_FILE, result)
        path = config.out / COMPARISON_FILE
        write_comparison(path, result, _for_machines(comparison))
        logger.info("wrote %s", path)
        return comparison


def _check_out(candidates: Sequence[Candidate], config: CompareConfig) -> None:
    """Refuse to replace a comparison that could not be made again from what is given."""
    if config.out.exists() and not config.out.is_dir():
        raise ConfigError(f"{config.out} is a file, not a folder: give another --out")
    path = config.out / COMPARISON_FILE
    if not path.exists() or config.overwrite:
        return
    listed = read_manifest(path, COMPARISON_KIND).get("dictionaries") or ()
    old = {each.get("hash") for each in listed if isinstance(each, dict)}
    lost = old - {candidate.content_hash for candidate in candidates}
    if lost:
        raise ConfigError(
            f"{path} compares {len(lost)} dictionaries that are not given now: give another --out, "
            "name them too, or replace it with --overwrite"
        )


def assemble(
    candidates: Sequence[Candidate], results: Results, config: CompareConfig
) -> MethodComparison:
    """Everything a report shows, from results that are there.

    Raises:
        ArtifactError: a result lacks what its suite writes.
    """
    members = measured(candidates, results, config)
    rows, reference = rows_of(members), reference_label(members, config)
    compared = compare_at_common_l0(members, rows, config)
    notes = notes_on(candidates)
    if dead := without_live_latents(candidates, results["core"]):
        named = ", ".join(candidate.name for candidate in dead)
        notes.append(f"Fewer than two live latents, so neither consistency nor steering: {named}.")
    if config.reference not in {candidate.method for candidate in candidates}:
        notes.append(
            f"No dictionary is of the method {config.reference}: differences are taken to "
            f"{reference}."
        )
    if not compared:
        notes.append(
            "Only one target L0: nothing to interpolate between, so methods are not compared "
            "with one another at the same L0."
        )
    return MethodComparison(
        config=config,
        members=members,
        columns=columns_of(members, config),
        rows=rows,
        reference=reference,
        compared=compared,
        modes=mode_rows_of(rows),
        notes=notes,
    )


def _result(comparison: MethodComparison) -> EvaluationResult:
    """What a page shows."""
    candidates = [member.candidate for member in comparison.members]
    spec, names = candidates[0].spec, labels_in_order(comparison.members)
    shared = {name: candidates[0].origin.get(name) for name in SHARED}
    shared["row_rule"] = to_plain(spec.token_filter)
    return EvaluationResult(
        suite="compare",
        dictionary_name=f"{len(candidates)} dictionaries",
        dictionary_hash="",
        settings=to_plain(comparison.config),
        made_from=shared | {"dictionaries": [each.content_hash for each in candidates]},
        metrics=(),
        title=f"{len(names)} training {'method' if len(names) == 1 else 'methods'} compared",
        subtitle=f"{len(candidates)} dictionaries at {shared['hook_point']} of {shared['model']}: "
        f"{', '.join(names)}. Held-out part of {spec.text.source}, contexts of "
        f"{spec.context_length} tokens. {SPREAD}",
        charts=charts_of(comparison),
        tables=tables_of(comparison),
        notes=tuple(comparison.notes),
        item_files={"dictionaries": PARQUET_FILE},
    )


def _for_machines(comparison: MethodComparison) -> dict[str, Any]:
    """What compare.json holds in addition to what a page shows."""
    columns = comparison.columns
    return {
        "spread": SPREAD,
        "definitions": {
            name: {"heading": column.name, "unit": column.unit, "definition": column.text}
            for name, column in columns.items()
        },
        "dictionaries": [
            _about(member.candidate)
            | {
                "results": {
                    suite: sha256_of(member.candidate.folder / RESULTS_FOLDER / f"{suite}.json")
                    for suite in member.results
                },
                "values": {name: member.values[name] for name in columns},
            }
            for member in comparison.members
        ],
        "rows": [
            _group(row)
            | {"seeds": row.seeds, "values": {n: asdict(row.values[n]) for n in columns}}
            for row in comparison.rows
        ],
        "reference": comparison.reference,
        "common_l0": [asdict(at) for at in comparison.compared],
        "inference_modes": [
            _group(mode.row)
            | {"mode": mode.mode, "values": {n: asdict(s) for n, s in mode.values.items()}}
            for mode in comparison.modes
        ],
    }


def _group(row: Row) -> dict[str, Any]:
    return {"label": row.label, "d_sae": row.d_sae, "k": row.k}


def _about(candidate: Candidate) -> dict[str, Any]:
    names = ("method", "label", "d_sae", "k", "seed", "n_tokens")
    return {
        "name": candidate.name,
        "folder": str(candidate.folder),
        "hash": candidate.content_hash,
        **{name: getattr(candidate, name) for name in names},
    }


def _parquet_columns(comparison: MethodComparison) -> dict[str, Any]:
    """Columns of compare.parquet: a row per dictionary, null where a number is undefined."""
    import pyarrow

    rows = [
        _about(member.candidate) | {name: member.values[name] for name in comparison.columns}
        for member in comparison.members
    ]
    numbers = {name: pyarrow.float64() for name in ("k", *comparison.columns)}
    return {name: pyarrow.array([row[name] for row in rows], numbers.get(name)) for name in rows[0]}
