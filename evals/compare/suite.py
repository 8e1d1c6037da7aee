"""`run_compare`: evaluate what is missing of every dictionary, and make one report of all.

Everything that can be wrong is checked before the first forward pass. The suites write their own
results beside each dictionary as they go, so a comparison that is stopped loses at most the part in
hand; the report is written when all numbers are there, the JSON last.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult
from saelab.formats.lock import writer_lock

from .candidates import Candidate, read_candidates
from .checks import check_comparable, notes_on
from .config import CompareConfig
from .figure_data import figure_data_of
from .jobs import core_config, core_job, jobs_on_latents
from .measure import finish, without_live_latents
from .report import write_page
from .result import Comparison, check_out, write_json_file, write_parquet_file
from .reuse import Survey, require_free, survey
from .rows import compare_at_common_l0, mode_rows_of, reference_label, rows_of
from .values import Results, columns_of, measured

logger = logging.getLogger(__name__)


def run_compare(folders: Sequence[Path], config: CompareConfig) -> Comparison:
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
        results = evaluate(candidates, config)
        return _write(assemble(candidates, results, config))


def evaluate(candidates: Sequence[Candidate], config: CompareConfig) -> Results:
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
) -> Comparison:
    """Everything a report shows, from results that are there.

    Raises:
        ArtifactError: a result lacks what its suite writes.
    """
    found = measured(candidates, results, config)
    rows, columns = rows_of(found), columns_of(found, config)
    reference = reference_label(found, config)
    compared = compare_at_common_l0(found, rows, config)
    notes = [*notes_on(candidates), *_note_on_silent(candidates, results)]
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
    return Comparison(
        config=config,
        found=found,
        columns=columns,
        rows=rows,
        reference=reference,
        compared=compared,
        modes=mode_rows_of(rows),
        figures=figure_data_of(found, rows, compared, columns, reference, config),
        notes=notes,
    )


def _note_on_silent(candidates: Sequence[Candidate], results: Results) -> list[str]:
    silent = without_live_latents(candidates, results["core"])
    if not silent:
        return []
    named = ", ".join(one.name for one in silent)
    return [f"Fewer than two live latents, so neither consistency nor steering: {named}."]


def _write(comparison: Comparison) -> Comparison:
    # An old comparison stays until the new one replaces it: stopping here loses none.
    comparison.config.out.mkdir(parents=True, exist_ok=True)
    write_parquet_file(comparison)
    write_page(comparison)
    path = write_json_file(comparison)
    logger.info("wrote %s", path)
    return comparison
