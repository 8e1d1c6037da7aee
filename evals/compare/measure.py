"""Run what is missing of the suites, a few dictionaries at a time: stopping loses little."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import EvaluationResult
from saelab.memory import keep_freed_memory
from saelab.progress import progress_bar

from .candidates import Candidate
from .reuse import Survey, survey

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
