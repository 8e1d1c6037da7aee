"""What a comparison asks of the suites core, consistency and steering."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult
from saelab.memory import give_back_freed_memory, keep_freed_memory
from saelab.progress import progress_bar

from ..consistency.suite import SUITE as CONSISTENCY
from ..core.suite import SUITE as CORE
from ..kept import asked_of, existing_results
from ..steering.suite import SUITE as STEERING
from ..suite import HeldOutConfig, Suite
from .candidates import UNKNOWN_SEED, Candidate
from .suite import CompareConfig

logger = logging.getLogger(__name__)

RESULTS_FOLDER = "evals"
MOST_NAMED = 3
MOST_AT_ONCE = 32
"""Dictionaries evaluated in one pass; the passes of the untouched model are shared among them."""
MOST_BYTES = 1 << 30
"""Weights held at once (a dictionary of more is evaluated by itself)."""


@dataclass(frozen=True)
class Survey:
    """One suite over some of the dictionaries of a comparison: what exists, what is left to do."""

    suite: Suite[Any]
    config: Any
    """Its settings; what exists is replaced."""
    results: dict[str, EvaluationResult]
    """The usable ones that exist, by dictionary hash."""
    missing: list[list[Candidate]]
    """Dictionaries to evaluate: alone, or the seeds of a group."""
    obstacles: list[str]
    """Why other results that exist are not usable."""


def suite_results(
    candidates: Sequence[Candidate], config: CompareConfig
) -> dict[str, dict[str, EvaluationResult]]:
    """The results by suite and dictionary hash: those that exist, and the missing ones evaluated.

    Raises:
        ConfigError: results of other settings exist.
        SaelabError: whatever the suites refuse.
    """
    core = _survey(CORE, _core(config), [[candidate] for candidate in candidates])
    on_latents = _surveys_on_latents(candidates, core.results, config)
    _require_free([core, *on_latents], overwrite=config.overwrite)
    for survey in (core, *on_latents):
        for obstacle in survey.obstacles:
            logger.warning("evaluated again: %s", obstacle)
    results = {"core": _finish(core)}
    # Only now is it known of every dictionary whether it has live latents.
    on_latents = _surveys_on_latents(candidates, results["core"], config)
    _require_free(on_latents, overwrite=config.overwrite)
    return results | {survey.suite.name: _finish(survey) for survey in on_latents}


def _surveys_on_latents(
    candidates: Sequence[Candidate], core: Mapping[str, EvaluationResult], config: CompareConfig
) -> list[Survey]:
    """The suites that need live latents: those asked for that have dictionaries."""
    dead = without_live_latents(candidates, core)
    alive = [candidate for candidate in candidates if candidate not in dead]
    seeds = [members for members in by_group(alive).values() if len(members) > 1]
    steered = [[candidate] for candidate in _steered(alive, config)]
    surveys = []
    if config.consistency and seeds:
        surveys.append(_survey(CONSISTENCY, settings_for(CONSISTENCY, config), seeds))
    if config.steering and steered:
        surveys.append(_survey(STEERING, _steering(config), steered))
    return surveys


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


def _survey(suite: Suite[Any], config: Any, units: Sequence[list[Candidate]]) -> Survey:
    """Look at the results that exist; nothing is changed."""
    survey = Survey(suite, config, {}, [], [])
    for unit in units:
        hashes = {each.folder / RESULTS_FOLDER: each.content_hash for each in unit}
        asked = asked_of(config, () if suite.groups is None else hashes.values())
        usable, obstacles = existing_results(suite, hashes, asked, refuse_lost=True)
        survey.obstacles.extend(obstacles)
        if len(usable) == len(unit):
            survey.results.update((result.dictionary_hash, result) for result in usable.values())
        else:
            survey.missing.append(unit)
    return survey


def _require_free(surveys: Sequence[Survey], *, overwrite: bool) -> None:
    """Refuse to replace results of other settings, unless asked to."""
    problems = [
        "; ".join([*obstacles[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])
        for obstacles in (survey.obstacles for survey in surveys)
        if (more := len(obstacles) - MOST_NAMED) > -MOST_NAMED
    ]
    if problems and not overwrite:
        raise ConfigError(problems)


def _finish(survey: Survey) -> dict[str, EvaluationResult]:
    """Evaluate what is missing; all results by dictionary hash."""
    suite, results, n_missing = survey.suite, survey.results, sum(map(len, survey.missing))
    if not n_missing:
        return results
    keep_freed_memory()
    logger.info(
        "%s: %d dictionaries to evaluate, %d done before", suite.name, n_missing, len(results)
    )
    with progress_bar(n_missing, f"suite {suite.name}", "dictionaries") as bar:
        for part in parts_of(survey.missing, group_of_suite if suite.groups else None):
            folders = [candidate.folder for candidate in part]
            measured = suite.run(folders, survey.config, pages=False)
            results = results | {result.dictionary_hash: result for result in measured}
            give_back_freed_memory()
            bar.update(len(part))
    return results


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


def settings_for(suite: Suite[Any], config: CompareConfig, **settings: Any) -> Any:
    """The settings of a suite: its own, and those that it shares with a comparison."""
    names = {field.name for field in fields(HeldOutConfig)} - {"out", "overwrite"}
    shared = {name: getattr(config, name) for name in ("n_tokens", *names)}
    return suite.Config(**shared, **settings, overwrite=True)


def _core(config: CompareConfig) -> Any:
    return settings_for(CORE, config, n_loss_tokens=config.n_loss_tokens, controls=())


def _steering(config: CompareConfig) -> Any:
    n_latents, strengths = config.steering_latents, (config.steering_strength,)
    return settings_for(
        STEERING, config, n_latents=n_latents, n_random=n_latents, strengths=strengths
    )


def _steered(candidates: Sequence[Candidate], config: CompareConfig) -> list[Candidate]:
    """Whom to steer with: the lowest seeds at the middle target L0 of each width."""
    middle = middle_k(candidates)
    steered: list[Candidate] = []
    for (_, d_sae, k), members in by_group(candidates).items():
        if k == middle[d_sae] if config.steering_k is None else k in config.steering_k:
            steered += members[: config.steering_seeds]
    return steered


def group_of_suite(candidate: Candidate) -> Hashable:
    """What the suite forms groups by: it looks at fewer settings than a comparison does."""
    settings = candidate.settings.items()
    options = {name: value for name, value in settings if name.startswith("options.")}
    return candidate.method, json.dumps(options, sort_keys=True), candidate.d_sae, candidate.k


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
