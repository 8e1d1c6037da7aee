"""What a comparison asks of the suites core, consistency and steering."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from typing import Any

from saelab.config import to_plain
from saelab.formats.evaluation_result import EvaluationResult

from ..consistency.config import ConsistencyConfig
from ..core.config import CoreConfig
from ..steering.config import SteeringConfig
from .candidates import Candidate
from .config import CompareConfig
from .reuse import Job

ROW_SETTINGS = ("context_length", "text", "row_rule", "norm_ceiling", "model_dtype")


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
    return {name: to_plain(getattr(one.spec, name)) for name in ROW_SETTINGS}


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
