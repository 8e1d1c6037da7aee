"""What a comparison asks of the suites core, consistency and steering."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.evaluation_result import EvaluationResult, read_evaluation_result
from saelab.memory import keep_freed_memory
from saelab.progress import progress_bar

from ..alike import row_settings
from ..consistency.suite import SUITE as CONSISTENCY
from ..core.suite import SUITE as CORE
from ..steering.suite import SUITE as STEERING
from ..suite import HeldOutConfig, Suite
from .candidates import UNKNOWN_SEED, Candidate
from .config import CompareConfig

logger = logging.getLogger(__name__)

RESULTS_FOLDER = "evals"
MOST_NAMED = 3
MOST_AT_ONCE = 32
"""Dictionaries evaluated in one pass; the passes of the untouched model are shared among them."""
MOST_BYTES = 1 << 30
"""Weights held at once (a dictionary of more is evaluated by itself)."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One suite over some of the dictionaries of a comparison."""

    suite: Suite[Any]
    config: Any
    """Its settings; what exists is replaced."""
    units: list[list[Candidate]]
    """Dictionaries that must be evaluated together: one, or the seeds of a group."""
    settings: tuple[str, ...]
    """Names of the settings that a result must have as `config` does."""
    expected: Callable[[Candidate], Mapping[str, Any]]
    """Further settings that a result must have."""
    given: Callable[[EvaluationResult], Mapping[str, Any]] = lambda _: {}
    """Those of these that a result does not have under the same name."""
    apart: Callable[[Candidate], Hashable] | None = None
    """Units for which this is equal must not be evaluated in one call; None: all may be."""


@dataclass(frozen=True)
class Survey:
    """Which results of a job exist, and what is left to evaluate."""

    job: Job
    results: dict[str, EvaluationResult]
    """The usable ones, by dictionary hash."""
    missing: list[list[Candidate]]
    """Units with a member whose result is missing or not usable."""
    obstacles: list[str]
    """Why results that exist are not usable."""


def suite_results(
    candidates: Sequence[Candidate], config: CompareConfig
) -> dict[str, dict[str, EvaluationResult]]:
    """The results by suite and dictionary hash: those that exist, and the missing ones evaluated.

    Raises:
        ConfigError: results of other settings exist.
        SaelabError: whatever the suites refuse.
    """
    core = _survey(_core(candidates, config))
    on_latents = _surveys_on_latents(candidates, core.results, config)
    _require_free([core, *on_latents], overwrite=config.overwrite)
    for survey in (core, *on_latents):
        for obstacle in survey.obstacles:
            logger.warning("evaluated again: %s", obstacle)
    results = {"core": _finish(core)}
    # Only now is it known of every dictionary whether it has live latents.
    on_latents = _surveys_on_latents(candidates, results["core"], config)
    _require_free(on_latents, overwrite=config.overwrite)
    return results | {survey.job.suite.name: _finish(survey) for survey in on_latents}


def _surveys_on_latents(
    candidates: Sequence[Candidate], core: Mapping[str, EvaluationResult], config: CompareConfig
) -> list[Survey]:
    """The suites that need live latents: those asked for that have dictionaries."""
    dead = without_live_latents(candidates, core)
    alive = [candidate for candidate in candidates if candidate not in dead]
    jobs = [_consistency(alive, config)] if config.consistency else []
    jobs += [_steering(alive, config)] if config.steering else []
    return [_survey(job) for job in jobs if job.units]


def without_live_latents(
    candidates: Sequence[Candidate], core: Mapping[str, EvaluationResult]
) -> list[Candidate]:
    """Dictionaries with fewer than two latents that fired on the evaluated rows.

    They have nothing to be found again or to steer with. Those without a core result are not known
    to be among them.
    """
    dead = {content_hash: result.value("dead_fraction") for content_hash, result in core.items()}
    return [
        candidate
        for candidate in candidates
        if (share := dead.get(candidate.content_hash)) is not None
        and round((1 - share) * candidate.d_sae) < 2
    ]


def _survey(job: Job) -> Survey:
    """Look at the results that exist; nothing is changed."""
    results: dict[str, EvaluationResult] = {}
    missing, obstacles = [], []
    for unit in job.units:
        usable = {}
        for candidate in unit:
            path = candidate.folder / RESULTS_FOLDER / f"{job.suite.stem}.json"
            try:
                if path.exists():
                    usable[candidate.content_hash] = _usable(path, candidate, job)
            except ArtifactError as error:
                obstacles.append(str(error))
        if len(usable) == len(unit):
            results |= usable
        else:
            missing.append(unit)
    return Survey(job, results, missing, obstacles)


def _usable(path: Path, candidate: Candidate, job: Job) -> EvaluationResult:
    """The result at a path; refused unless it is the job's, on this dictionary."""
    result = read_evaluation_result(path)
    if result.suite != job.suite.stem:
        raise ArtifactError(
            f"{path} is a result of the suite {result.suite!r}, not {job.suite.stem!r}"
        )
    if result.dictionary_hash != candidate.content_hash:
        raise ArtifactError(f"{path} is about another dictionary than the one beside it")
    given = {**result.settings, **job.given(result)}
    expected = {name: getattr(job.config, name) for name in job.settings}
    expected |= job.expected(candidate)
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


def _require_free(surveys: Sequence[Survey], *, overwrite: bool) -> None:
    """Refuse to replace results of other settings, unless asked to."""
    problems = [
        "; ".join([*obstacles[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])
        for obstacles in (survey.obstacles for survey in surveys)
        if (more := len(obstacles) - MOST_NAMED) > -MOST_NAMED
    ]
    if problems and not overwrite:
        raise ConfigError(
            f"{'; '.join(problems)}: give the settings they were made with, or --overwrite to "
            "evaluate again"
        )


def _finish(survey: Survey) -> dict[str, EvaluationResult]:
    """Evaluate what is missing; all results by dictionary hash."""
    job, n_missing, n_done = survey.job, sum(map(len, survey.missing)), len(survey.results)
    if not n_missing:
        return survey.results
    keep_freed_memory()
    logger.info(
        "%s: %d dictionaries to evaluate, %d done before", job.suite.name, n_missing, n_done
    )
    with progress_bar(n_missing, f"suite {job.suite.name}", "dictionaries") as bar:
        for part in parts_of(survey.missing, job.apart):
            job.suite.run([candidate.folder for candidate in part], job.config, pages=False)
            bar.update(len(part))
    again = _survey(job)
    if again.missing:
        lost = again.missing[0][0]
        raise ArtifactError(
            f"the {job.suite.name} result of {lost.folder} is not there after it was written"
            + (f" ({again.obstacles[0]})" if again.obstacles else "")
            + ": is another comparison of the same dictionaries running?"
        )
    return again.results


def parts_of(
    units: Sequence[list[Candidate]], apart: Callable[[Candidate], Hashable] | None = None
) -> Iterator[list[Candidate]]:
    """Units in parts of limited size, none divided; two of equal `apart` in different parts."""
    part: list[Candidate] = []
    keys: set[Hashable] = set()
    for unit in units:
        together = [*part, *unit]
        key = None if apart is None else apart(unit[0])
        too_large = sum(candidate.weight_bytes for candidate in together) > MOST_BYTES
        clash = apart is not None and key in keys
        if part and (clash or too_large or len(together) > MOST_AT_ONCE):
            yield part
            part, keys = list(unit), {key}
        else:
            part, keys = together, keys | {key}
    if part:
        yield part


def _config(suite: Suite[Any], config: CompareConfig, **settings: Any) -> Any:
    """The settings of a suite: its own, and those that it shares with a comparison."""
    names = {field.name for field in fields(HeldOutConfig)} - {"out", "overwrite"}
    shared = {name: getattr(config, name) for name in ("n_tokens", *names)}
    return suite.Config(**shared, **settings, overwrite=True)


def _core(candidates: Sequence[Candidate], config: CompareConfig) -> Job:
    """The suite core, on every dictionary."""
    return Job(
        suite=CORE,
        config=_config(CORE, config, n_loss_tokens=config.n_loss_tokens),
        units=[[candidate] for candidate in candidates],
        settings=("n_tokens", "n_loss_tokens"),
        expected=lambda candidate: row_settings(candidate.spec),
    )


def _consistency(candidates: Sequence[Candidate], config: CompareConfig) -> Job:
    """The suite consistency, on the seeds of each group."""
    groups = [members for members in by_group(candidates).values() if len(members) > 1]
    hashes = {
        members[0].group: sorted(candidate.content_hash for candidate in members)
        for members in groups
    }

    def expected(candidate: Candidate) -> dict[str, Any]:
        others = [each for each in hashes[candidate.group] if each != candidate.content_hash]
        return {"compared_with": others}

    def given(result: EvaluationResult) -> dict[str, Any]:
        compared = result.settings.get("compared_with")
        runs = compared.values() if isinstance(compared, dict) else ()
        listed = [str(run.get("hash")) for run in runs if isinstance(run, dict)]
        return {"compared_with": sorted(listed)}

    return Job(
        suite=CONSISTENCY,
        config=_config(CONSISTENCY, config),
        units=groups,
        settings=("threshold", "top_fraction", "activity", "n_tokens"),
        expected=expected,
        given=given,
        apart=group_of_suite,
    )


def group_of_suite(candidate: Candidate) -> Hashable:
    """What the suite forms groups by: it looks at fewer settings than a comparison does."""
    settings = candidate.settings.items()
    options = {name: value for name, value in settings if name.startswith("options.")}
    return candidate.method, json.dumps(options, sort_keys=True), candidate.d_sae, candidate.k


def _steering(candidates: Sequence[Candidate], config: CompareConfig) -> Job:
    """The suite steering, on the lowest seeds at the middle target L0 of each width."""
    strength, n_latents = config.steering_strength, config.steering_latents
    middle = middle_k(candidates)
    steered: list[Candidate] = []
    for (_, d_sae, k), members in by_group(candidates).items():
        if k == middle[d_sae] if config.steering_k is None else k in config.steering_k:
            steered += members[: config.steering_seeds]

    def expected(candidate: Candidate) -> dict[str, Any]:
        return {"strength": strength, "latents": n_latents, **row_settings(candidate.spec)}

    def given(result: EvaluationResult) -> dict[str, Any]:
        strengths = result.settings.get("strengths")
        # Fewer latents than asked for are all that are alive; more strengths do no harm.
        alive = [metric.value for metric in result.metrics if metric.name == "n_alive"]
        count = result.settings.get("n_latents")
        enough = count in alive and isinstance(count, int) and count < n_latents
        asked = isinstance(strengths, list) and strength in strengths
        return {
            "strength": strength if asked else strengths,
            "latents": n_latents if enough else count,
            "seed": result.seed,
        }

    return Job(
        suite=STEERING,
        config=_config(
            STEERING, config, n_latents=n_latents, n_random=n_latents, strengths=(strength,)
        ),
        units=[[candidate] for candidate in steered],
        settings=("n_contexts", "prompt_tokens", "n_random", "n_top_tokens", "n_tokens", "seed"),
        expected=expected,
        given=given,
    )


def by_group(
    candidates: Sequence[Candidate],
) -> dict[tuple[str, int, float | None], list[Candidate]]:
    """Label, width and target L0 -> its dictionaries, the lowest seed first."""
    groups: dict[tuple[str, int, float | None], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.group, []).append(candidate)
    for members in groups.values():
        members.sort(key=lambda c: UNKNOWN_SEED if c.seed is None else c.seed)
    return groups


def middle_k(candidates: Sequence[Candidate]) -> dict[int, float | None]:
    """By width, the middle one of the target L0 values, the lower of two."""
    by_width: dict[int, set[float | None]] = {}
    for candidate in candidates:
        by_width.setdefault(candidate.d_sae, set()).add(candidate.k)
    ordered = {
        d_sae: sorted(values, key=lambda k: -1.0 if k is None else k)
        for d_sae, values in by_width.items()
    }
    return {d_sae: values[(len(values) - 1) // 2] for d_sae, values in ordered.items()}
