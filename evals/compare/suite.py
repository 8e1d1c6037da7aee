"""`run_compare`: evaluate what is missing of every dictionary, and make one report of all.

Everything that can be wrong is checked before the first forward pass. The suites write their own
results beside each dictionary as they go, so a comparison that is stopped loses at most the part in
hand; the report is written when all numbers are there, the JSON last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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

from ..suite import Definition, write_rows
from .candidates import Candidate, check_comparable, notes_on, read_candidates
from .charts import charts_of
from .config import CompareConfig
from .jobs import (
    RESULTS_FOLDER,
    Survey,
    core_config,
    core_job,
    finish,
    jobs_on_latents,
    require_free,
    survey,
    without_live_latents,
)
from .numbers import SPREAD, MeasuredCandidate, Results, columns_of, measured
from .rows import (
    AtCommonL0,
    ModeRow,
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


@dataclass(frozen=True, eq=False)
class MethodComparison:
    """Everything that was found out, ready to be written."""

    config: CompareConfig
    found: list[MeasuredCandidate]
    """Every dictionary with its numbers, in the order given."""
    columns: dict[str, Definition]
    """The numbers that some dictionary has."""
    rows: list[Row]
    """Means over seeds."""
    reference: str
    """Label that differences are taken to."""
    compared: list[AtCommonL0]
    """Methods at common L0."""
    modes: list[ModeRow]
    """Inference modes beside the plain one, where some dictionary has them."""
    result: EvaluationResult
    """What a page shows."""


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
    candidates = read_candidates(folders, core_config(config))
    check_comparable(candidates)
    check_out(candidates, config)
    with writer_lock(config.out):
        comparison = assemble(candidates, suite_results(candidates, config), config)
        # An old comparison stays until the new one replaces it: stopping here loses none.
        write_rows(config.out / PARQUET_FILE, _parquet_columns(comparison))
        write_result_page(config.out / PAGE_FILE, comparison.result)
        path = config.out / COMPARISON_FILE
        write_comparison(path, comparison.result, _for_machines(comparison))
        logger.info("wrote %s", path)
        return comparison


def check_out(candidates: Sequence[Candidate], config: CompareConfig) -> None:
    """Refuse to replace a comparison that could not be made again from what is given.

    Raises:
        ConfigError: `out` holds a comparison of other dictionaries, or is a file.
        ArtifactError: what lies there as compare.json is none of ours.
    """
    if config.out.exists() and not config.out.is_dir():
        raise ConfigError(f"{config.out} is a file, not a folder: give another --out")
    path = config.out / COMPARISON_FILE
    if not path.exists() or config.overwrite:
        return
    content = read_manifest(path, COMPARISON_KIND)
    listed = content.get("dictionaries")
    old = {one.get("hash") for one in listed or () if isinstance(one, dict)}
    lost = old - {one.content_hash for one in candidates}
    if lost:
        raise ConfigError(
            f"{path} compares {len(lost)} dictionaries that are not given now: give another --out, "
            "name them too, or replace it with --overwrite"
        )


def suite_results(candidates: Sequence[Candidate], config: CompareConfig) -> Results:
    """The results of every suite: those that exist, and the missing ones evaluated.

    Raises:
        ConfigError: results of other settings exist.
        SaelabError: whatever the suites refuse.
    """
    core = survey(core_job(candidates, config))
    others = _surveys_on_latents(candidates, core.results, config)
    require_free([core, *others], overwrite=config.overwrite)
    for one in (core, *others):
        for obstacle in one.obstacles:
            logger.warning("evaluated again: %s", obstacle)
    results = {"core": finish(core)}
    # Only now is it known of every dictionary whether it has live latents.
    others = _surveys_on_latents(candidates, results["core"], config)
    require_free(others, overwrite=config.overwrite)
    return results | {one.job.suite: finish(one) for one in others}


def _surveys_on_latents(
    candidates: Sequence[Candidate], core: Mapping[str, EvaluationResult], config: CompareConfig
) -> list[Survey]:
    silent = without_live_latents(candidates, core)
    alive = [one for one in candidates if one not in silent]
    return [survey(job) for job in jobs_on_latents(alive, config)]


def assemble(
    candidates: Sequence[Candidate], results: Results, config: CompareConfig
) -> MethodComparison:
    """Everything a report shows, from results that are there.

    Raises:
        ArtifactError: a result lacks what its suite writes.
    """
    found = measured(candidates, results, config)
    rows, columns = rows_of(found), columns_of(found, config)
    reference = reference_label(found, config)
    compared = compare_at_common_l0(found, rows, config)
    modes = mode_rows_of(rows)
    notes = notes_on(candidates)
    if silent := without_live_latents(candidates, results["core"]):
        named = ", ".join(one.name for one in silent)
        notes.append(f"Fewer than two live latents, so neither consistency nor steering: {named}.")
    if config.reference not in {one.method for one in candidates}:
        notes.append(
            f"No dictionary is of the method {config.reference}: differences are taken to "
            f"{reference}."
        )
    if not compared:
        notes.append(
            "Only one target L0: nothing to interpolate between, so methods are not held against "
            "one another at the same L0."
        )
    origin, names = _origin(candidates[0]), labels_in_order(found)
    result = EvaluationResult(
        suite="compare",
        dictionary_name=f"{len(found)} dictionaries",
        dictionary_hash="",
        settings=to_plain(config),
        made_from=origin | {"dictionaries": [one.content_hash for one in candidates]},
        metrics=(),
        title=f"{len(names)} training {'method' if len(names) == 1 else 'methods'} compared",
        subtitle=f"{len(found)} dictionaries at {origin['hook_point']} of {origin['model']}: "
        f"{', '.join(names)}. Held-out part of {origin['text'].get('source')}, contexts of "
        f"{origin['context_length']} tokens. {SPREAD}",
        charts=charts_of(found, rows, compared, columns, reference, config),
        tables=tables_of(found, rows, columns, compared, reference, modes),
        notes=tuple(notes),
        item_files={"dictionaries": PARQUET_FILE},
    )
    return MethodComparison(config, found, columns, rows, reference, compared, modes, result)


def _origin(candidate: Candidate) -> dict[str, Any]:
    """What all dictionaries have in common."""
    wanted = ("model", "model_hash", "hook_point", "text", "text_hash", "context_length")
    return {name: candidate.origin.get(name) for name in wanted} | {
        "row_rule": to_plain(candidate.spec.token_filter)
    }


def _for_machines(comparison: MethodComparison) -> dict[str, Any]:
    """What compare.json holds beside what a page shows."""
    columns = comparison.columns
    dictionaries = [
        _about(one.candidate)
        | {
            "results": {
                suite: sha256_of(one.candidate.folder / RESULTS_FOLDER / f"{suite}.json")
                for suite in one.results
            },
            "values": {name: one.values[name] for name in columns},
        }
        for one in comparison.found
    ]
    rows = [
        _group(row) | {"seeds": row.seeds, "values": {n: asdict(row.values[n]) for n in columns}}
        for row in comparison.rows
    ]
    modes = [
        _group(one.row)
        | {"mode": one.mode, "values": {name: asdict(s) for name, s in one.values.items()}}
        for one in comparison.modes
    ]
    return {
        "spread": SPREAD,
        "definitions": {
            name: {"heading": column.name, "unit": column.unit, "definition": column.text}
            for name, column in columns.items()
        },
        "dictionaries": dictionaries,
        "rows": rows,
        "reference": comparison.reference,
        "common_l0": [asdict(one) for one in comparison.compared],
        "inference_modes": modes,
    }


def _group(row: Row) -> dict[str, Any]:
    return {"label": row.label, "d_sae": row.d_sae, "k": row.k}


def _about(candidate: Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "folder": str(candidate.folder),
        "hash": candidate.content_hash,
        "method": candidate.method,
        "label": candidate.label,
        "d_sae": candidate.d_sae,
        "k": candidate.k,
        "seed": candidate.seed,
        "n_tokens": candidate.n_tokens,
    }


def _parquet_columns(comparison: MethodComparison) -> dict[str, Any]:
    """Columns of compare.parquet: a row per dictionary, null where a number is undefined."""
    import pyarrow

    rows = [
        _about(one.candidate) | {name: one.values[name] for name in comparison.columns}
        for one in comparison.found
    ]
    numbers = {name: pyarrow.float64() for name in ("k", *comparison.columns)}
    return {name: pyarrow.array([row[name] for row in rows], numbers.get(name)) for name in rows[0]}
