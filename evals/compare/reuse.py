"""Which results exist already from the same settings, and which stand in the way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.evaluation_result import EvaluationResult, read_evaluation_result

from .candidates import Candidate

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
    """Evaluate dictionaries anew; what exists is replaced."""
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
