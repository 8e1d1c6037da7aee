"""What a comparison asks of the suites core, consistency and steering."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.config import to_plain
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.evaluation_result import EvaluationResult, read_evaluation_result
from saelab.memory import keep_freed_memory
from saelab.progress import progress_bar

from ..consistency.suite import ConsistencyConfig
from ..core.config import CoreConfig
from ..steering.config import SteeringConfig
from .candidates import Candidate
from .config import CompareConfig

RESULTS_FOLDER = "evals"
MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """One suite over some of the dictionaries of a comparison."""

    suite: str
    """Name of the suite."""
    result_file: str
    """Name of its result file."""
    units: list[list[Candidate]]
    """Dictionaries that must be evaluated together: one, or the seeds of a group."""
    expected: Callable[[Candidate], Mapping[str, Any]]
    """The settings that a result must have to be used."""
    given: Callable[[EvaluationResult], Mapping[str, Any]]
    """The same settings, as a result has them."""
    run: Callable[[Sequence[Path]], Sequence[EvaluationResult]]
    """Evaluate dictionaries again; what exists is replaced."""
    apart: Callable[[Candidate], Hashable] | None = None
    """Units for which this is equal must not be evaluated in one call; None: all may be."""


@dataclass(frozen=True)
class Survey:
    """What a job finds done, and what is left."""

    job: Job
    results: dict[str, EvaluationResult]
    """Usable results by dictionary hash."""
    missing: list[list[Candidate]]
    """Units with a member whose result is missing or not usable."""
    obstacles: list[str]
    """Why results that exist are not usable."""


def survey(job: Job) -> Survey:
    """Look at the results that exist; nothing is changed."""
    results: dict[str, EvaluationResult] = {}
    missing, obstacles = [], []
    for unit in job.units:
        found = {}
        for one in unit:
            path = result_path(one, job.result_file)
            if not path.exists():
                continue
            try:
                found[one.content_hash] = _usable(path, one, job)
            except ArtifactError as error:
                obstacles.append(str(error))
        if len(found) == len(unit):
            results |= found
        else:
            missing.append(unit)
    return Survey(job, results, missing, obstacles)


def result_path(candidate: Candidate, result_file: str) -> Path:
    """Where a suite's result on a dictionary lies."""
    return candidate.folder / RESULTS_FOLDER / result_file


def require_free(surveys: Sequence[Survey], *, overwrite: bool) -> None:
    """Refuse to replace results of other settings, unless asked to.

    Raises:
        ConfigError: naming the results and how their settings differ.
    """
    if overwrite:
        return
    problems = []
    for one in surveys:
        shown = one.obstacles[:MOST_NAMED]
        if shown:
            more = len(one.obstacles) - len(shown)
            problems.append("; ".join(shown) + (f"; and {more} more" if more else ""))
    if problems:
        raise ConfigError(
            f"{'; '.join(problems)}: give the settings they were made with, or --overwrite to "
            "evaluate again"
        )


def _usable(path: Path, candidate: Candidate, job: Job) -> EvaluationResult:
    """The result at a path, if it is this suite's on this dictionary with these settings.

    Raises:
        ArtifactError: it is not, and why.
    """
    result = read_evaluation_result(path)
    if result.suite != job.suite:
        raise ArtifactError(f"{path} is a result of the suite {result.suite!r}, not {job.suite!r}")
    if result.dictionary_hash != candidate.content_hash:
        raise ArtifactError(f"{path} is about another dictionary than the one beside it")
    given, expected = job.given(result), job.expected(candidate)
    odd = [name for name in expected if given.get(name) != expected[name]]
    if odd:
        how = ", ".join(
            f"{name} {_short(given.get(name))}, not {_short(expected[name])}" for name in odd
        )
        raise ArtifactError(f"{path} was made with other settings ({how})")
    lost = [name for name in result.item_files.values() if not (path.parent / name).is_file()]
    if lost:
        raise ArtifactError(f"{path} names {', '.join(lost)} beside it: missing")
    return result


def _short(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"{len(value)} values"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


ROW_SETTINGS = {
    "context_length": "context_length",
    "text": "text",
    "row_rule": "token_filter",
    "norm_ceiling": "norm_ceiling",
    "model_dtype": "model_dtype",
}
"""What results call the settings that decide the evaluated rows, and what a data spec does."""


def core_config(config: CompareConfig) -> CoreConfig:
    """The settings of the suite core."""
    return CoreConfig(
        n_tokens=config.n_tokens,
        n_loss_tokens=config.n_loss_tokens,
        batch_contexts=config.batch_contexts,
        model=config.model,
        model_dtype=config.model_dtype,
        device=config.device,
        overwrite=True,
    )


def consistency_config(config: CompareConfig) -> ConsistencyConfig:
    """The settings of the suite consistency."""
    return ConsistencyConfig(
        n_tokens=config.n_tokens,
        batch_contexts=config.batch_contexts,
        model=config.model,
        model_dtype=config.model_dtype,
        device=config.device,
        overwrite=True,
    )


def steering_config(config: CompareConfig) -> SteeringConfig:
    """The settings of the suite steering."""
    return SteeringConfig(
        n_latents=config.steering_latents,
        n_random=config.steering_latents,
        strengths=(config.steering_strength,),
        n_tokens=config.n_tokens,
        batch_contexts=config.batch_contexts,
        model=config.model,
        model_dtype=config.model_dtype,
        device=config.device,
        overwrite=True,
    )


def jobs_on_latents(candidates: Sequence[Candidate], config: CompareConfig) -> list[Job]:
    """The suites that need live latents, as far as they are wanted and have dictionaries."""
    jobs = []
    if config.consistency:
        jobs.append(_consistency(candidates, config))
    if config.steering:
        jobs.append(_steering(candidates, config))
    return [job for job in jobs if job.units]


def core_job(candidates: Sequence[Candidate], config: CompareConfig) -> Job:
    """The suite core, on every dictionary."""
    from ..core.suite import RESULT_FILE, run_core

    settings = core_config(config)

    def expected(one: Candidate) -> dict[str, Any]:
        return {
            "n_tokens": settings.n_tokens,
            "n_loss_tokens": settings.loss_tokens,
            **_rows(one),
        }

    return Job(
        suite="core",
        result_file=RESULT_FILE,
        units=[[one] for one in candidates],
        expected=expected,
        given=lambda result: result.settings,
        run=lambda folders: run_core(folders, settings, pages=False),
    )


def _consistency(candidates: Sequence[Candidate], config: CompareConfig) -> Job:
    from ..consistency.suite import RESULT_FILE, run_consistency

    settings = consistency_config(config)
    groups = [members for members in by_group(candidates).values() if len(members) > 1]

    def expected(one: Candidate) -> dict[str, Any]:
        others = [other for other in groups_of[one.content_hash] if other is not one]
        return {
            "compared_with": sorted(other.content_hash for other in others),
            "threshold": settings.threshold,
            "top_fraction": settings.top_fraction,
            "activity": settings.activity,
            "n_tokens": settings.n_tokens,
        }

    groups_of = {one.content_hash: members for members in groups for one in members}
    return Job(
        suite="consistency",
        result_file=RESULT_FILE,
        units=groups,
        expected=expected,
        given=_consistency_settings,
        run=lambda folders: run_consistency(folders, settings, pages=False),
        apart=_group_of_suite,
    )


def _group_of_suite(one: Candidate) -> Hashable:
    """What the suite forms groups by: it looks at fewer settings than a comparison does."""
    options = {name: value for name, value in one.settings.items() if name.startswith("options.")}
    return one.method, json.dumps(options, sort_keys=True), one.d_sae, one.k


def _consistency_settings(result: EvaluationResult) -> dict[str, Any]:
    compared = result.settings.get("compared_with")
    named = compared.values() if isinstance(compared, dict) else ()
    hashes = [one.get("hash") for one in named if isinstance(one, dict)]
    return {**result.settings, "compared_with": sorted(map(str, hashes))}


def _steering(candidates: Sequence[Candidate], config: CompareConfig) -> Job:
    from ..steering.suite import RESULT_FILE, run_steering

    settings = steering_config(config)
    counts = ("n_contexts", "prompt_tokens", "n_random", "n_top_tokens", "n_tokens")

    def expected(one: Candidate) -> dict[str, Any]:
        return {
            **{name: getattr(settings, name) for name in counts},
            "strength": config.steering_strength,
            "latents": settings.n_latents,
            "seed": settings.seed,
            **_rows(one),
        }

    def given(result: EvaluationResult) -> dict[str, Any]:
        strengths = result.settings.get("strengths")
        # Fewer latents than asked for are all that are alive; more strengths do no harm.
        alive = [metric.value for metric in result.metrics if metric.name == "n_alive"]
        steered = result.settings.get("n_latents")
        enough = steered in alive and isinstance(steered, int) and steered < settings.n_latents
        asked = isinstance(strengths, list) and config.steering_strength in strengths
        return {
            **result.settings,
            "strength": config.steering_strength if asked else strengths,
            "latents": settings.n_latents if enough else steered,
            "seed": result.seed,
        }

    return Job(
        suite="steering",
        result_file=RESULT_FILE,
        units=[[one] for one in steered(candidates, config)],
        expected=expected,
        given=given,
        run=lambda folders: run_steering(folders, settings, pages=False),
    )


def _rows(one: Candidate) -> dict[str, Any]:
    """The settings that decide the evaluated rows, as results record them."""
    return {name: to_plain(getattr(one.spec, own)) for name, own in ROW_SETTINGS.items()}


def by_group(
    candidates: Sequence[Candidate],
) -> dict[tuple[str, int, float | None], list[Candidate]]:
    """The seeds of each method, width and target L0, the lowest seed first."""
    groups: dict[tuple[str, int, float | None], list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(one.group, []).append(one)
    return {group: sorted(members, key=lambda one: one.seed) for group, members in groups.items()}


def steered(candidates: Sequence[Candidate], config: CompareConfig) -> list[Candidate]:
    """The dictionaries to steer with: the lowest seeds at the middle target L0 of each width."""
    middle = middle_k(candidates)
    chosen = []
    for (_, d_sae, k), members in by_group(candidates).items():
        wanted = k == middle[d_sae] if config.steering_k is None else k in config.steering_k
        if wanted:
            chosen += members[: config.steering_seeds]
    return chosen


def middle_k(candidates: Sequence[Candidate]) -> dict[int, float | None]:
    """By width, the middle one of the target L0 values, the lower of two."""
    by_width: dict[int, set[float | None]] = {}
    for one in candidates:
        by_width.setdefault(one.d_sae, set()).add(one.k)
    ordered = {
        d_sae: sorted(values, key=lambda k: -1.0 if k is None else k)
        for d_sae, values in by_width.items()
    }
    return {d_sae: values[(len(values) - 1) // 2] for d_sae, values in ordered.items()}


logger = logging.getLogger(__name__)

MOST_AT_ONCE = 32
"""Dictionaries evaluated in one pass; the passes of the untouched model are shared among them."""
MOST_BYTES = 1 << 30
"""Weights held at once (a dictionary of more is evaluated by itself)."""


def finish(found: Survey) -> dict[str, EvaluationResult]:
    """Evaluate what a survey found missing.

    Returns:
        The suite's results by dictionary hash, those that existed included.

    Raises:
        SaelabError: whatever the suite refuses; what was finished before is kept.
        ArtifactError: a suite wrote what a second look does not find.
    """
    job, results = found.job, dict(found.results)
    n_missing = sum(map(len, found.missing))
    if not n_missing:
        return results
    keep_freed_memory()
    logger.info(
        "%s: %d dictionaries to evaluate, %d done before", job.suite, n_missing, len(results)
    )
    with progress_bar(n_missing, f"suite {job.suite}", "dictionaries") as bar:
        for part in parts_of(found.missing, job.apart):
            job.run([one.folder for one in part])
            bar.update(len(part))
    again = survey(job)
    if again.missing:
        lost = again.missing[0][0]
        raise ArtifactError(
            f"the {job.suite} result of {lost.folder} is not there after it was written"
            + (f" ({again.obstacles[0]})" if again.obstacles else "")
            + ": is another comparison of the same dictionaries running?"
        )
    return again.results


def parts_of(
    units: Sequence[list[Candidate]], apart: Callable[[Candidate], Hashable] | None = None
) -> Iterator[list[Candidate]]:
    """Units in parts of limited size, none of them divided.

    Args:
        units: what must stay together.
        apart: two units for which this is equal come into different parts.
    """
    part: list[Candidate] = []
    keys: set[Hashable] = set()
    for unit in units:
        together = [*part, *unit]
        key = None if apart is None else apart(unit[0])
        too_large = sum(one.weight_bytes for one in together) > MOST_BYTES
        clash = apart is not None and key in keys
        if part and (clash or too_large or len(together) > MOST_AT_ONCE):
            yield part
            part, keys = list(unit), {key}
        else:
            part, keys = together, keys | {key}
    if part:
        yield part


def without_live_latents(
    candidates: Sequence[Candidate], core: Mapping[str, EvaluationResult]
) -> list[Candidate]:
    """Dictionaries with fewer than two latents that fired on the evaluated rows.

    They have nothing to be found again or to steer with. Those without a core result are not known
    to be among them.
    """
    found = []
    for one in candidates:
        result = core.get(one.content_hash)
        dead = None if result is None else result.value("dead_fraction")
        if dead is not None and round((1 - dead) * one.d_sae) < 2:
            found.append(one)
    return found
