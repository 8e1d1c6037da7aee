"""`run_steering`: add latents' directions in arbitrary contexts and see what the logits do.

After "Features that Make a Difference" (arXiv 2411.10397): are a dictionary's latents good for
steering wherever they are added, and not only where they are active by themselves? Everything that
can be wrong is checked before the first forward pass; results are written when all numbers are
there, the JSON last, so a result that exists is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import DataSpec, held_out_rows
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.evaluation_result import EvaluationResult, write_evaluation_result
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.cosines import random_directions
from saelab.stats.metrics import SparsityStatistics
from saelab.stats.seeds import seeded_generator

from ..pages import page_if
from ..subjects import Subject, by_data_spec, load_models, result_folders, subjects_of
from .config import SteeringConfig
from .effects import Effects, measure_effects
from .prompts import draw_prompts
from .report import write_report
from .result import FEATURES_FILE, Findings, build_result, write_features

logger = logging.getLogger(__name__)

RESULT_FILE = "steering.json"
REPORT_FILE = "steering.html"
PLANTED = "planted:"


@dataclass(frozen=True, eq=False)
class _Shared:
    """What all dictionaries of one data spec share."""

    prompts: Int[Tensor, "contexts seq"]
    mean_norm: float
    n_rows: int
    sparsity: list[SparsityStatistics]
    random: Effects


def run_steering(
    folders: Sequence[Path], config: SteeringConfig, *, pages: bool = True
) -> list[EvaluationResult]:
    """Steer with dictionaries; writes `steering.json`, a row per latent and a page for each.

    Args:
        folders: saved dictionaries.
        config: settings.
        pages: whether to write `steering.html`, 5 MB each; without it, one that lies there is
            removed.

    Returns:
        The results in the order of the folders.

    Raises:
        ConfigError: no or doubled folders, or a result that exists and may not be overwritten.
        ArtifactError: a folder that is no intact dictionary, does not fit its model, or has too few
            live latents.
        ModelError: an unknown model or hook point, or one where nothing can be spliced in.
        TextError: too little held-out text.
        ActivationError: activations or logits that are not finite.
    """
    places = result_folders(folders, config.out, RESULT_FILE, overwrite=config.overwrite)
    dictionaries = [load_dictionary(folder) for folder in folders]
    for saved in dictionaries:
        if str(saved.made_from.get("model", "")).startswith(PLANTED):
            raise ArtifactError(
                f"{saved.folder} was trained on planted features: there is no language model whose "
                "logits it could steer; judge it with `saelab eval recovery`"
            )
    subjects = subjects_of(dictionaries, places, config)
    models = load_models(subjects, config.device)
    groups = by_data_spec(subjects)
    for spec in groups:
        _check_model(models[spec.model, spec.model_dtype], spec, config)
    results: dict[Path, EvaluationResult] = {}
    for spec, group in groups.items():
        model = models[spec.model, spec.model_dtype]
        found = _evaluate(model, spec, group, config, pages=pages)
        for subject, result in zip(group, found, strict=True):
            results[subject.out] = result
    return [results[subject.out] for subject in subjects]


def _check_model(model: LanguageModel, spec: DataSpec, config: SteeringConfig) -> None:
    model.require_spliceable(spec.hook_point)
    problems = []
    if config.prompt_tokens > model.max_context:
        problems.append(
            f"prompt_tokens: {config.prompt_tokens} is longer than the {model.max_context} tokens "
            f"that {model.name} takes"
        )
    if config.n_top_tokens > model.d_vocab:
        problems.append(
            f"n_top_tokens: {config.n_top_tokens} exceeds the vocabulary of {model.name}, "
            f"{model.d_vocab}"
        )
    if problems:
        raise ConfigError(problems)


def _evaluate(
    model: LanguageModel,
    spec: DataSpec,
    group: Sequence[Subject],
    config: SteeringConfig,
    *,
    pages: bool,
) -> list[EvaluationResult]:
    for subject in group:
        subject.saved.dictionary.to(model.device)
    mean_norm, n_rows, sparsity = _look_at_rows(model, spec, group, config)
    drawn = [
        draw_latents(subject, one, config) for subject, one in zip(group, sparsity, strict=True)
    ]
    prompts = draw_prompts(
        model,
        spec,
        count=config.n_contexts,
        length=config.prompt_tokens,
        seed=config.seed,
    )
    width = group[0].saved.dictionary.d_in
    floor = random_directions(config.n_random, width, config.seed)
    random = _steer(model, spec, prompts, floor, mean_norm, config, "random directions")
    results = []
    for subject, one, latent in zip(group, sparsity, drawn, strict=True):
        rows = subject.saved.dictionary.W_dec[latent].double()
        directions = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)).float()
        effects = _steer(model, spec, prompts, directions, mean_norm, config, subject.saved.name)
        findings = Findings(
            latent=latent.cpu(),
            density=one.density()[latent].cpu(),
            n_alive=int((one.count > 0).sum()),
            effects=effects,
            random=random,
            promoted=_as_text(model, effects),
            mean_norm=mean_norm,
            n_rows=n_rows,
        )
        result = build_result(subject.saved, spec, findings, config)
        results.append(_write(subject.out, result, findings, config, page=pages))
    return results


def _look_at_rows(
    model: LanguageModel, spec: DataSpec, group: Sequence[Subject], config: SteeringConfig
) -> tuple[float, int, list[SparsityStatistics]]:
    """Mean norm and number of the held-out rows, and what each dictionary does on them."""
    sparsity = [
        SparsityStatistics(subject.saved.dictionary.d_sae, model.device) for subject in group
    ]
    total, n_rows = 0.0, 0
    with progress_bar(config.n_tokens, "find live latents", "rows") as bar:
        for rows in held_out_rows(model, spec, config.n_tokens, config.batch_contexts):
            total += float(rows.double().norm(dim=1).sum())
            n_rows += len(rows)
            for subject, one in zip(group, sparsity, strict=True):
                one.update(subject.saved.dictionary.encode(rows))
            bar.update(len(rows))
    if n_rows == 0:
        raise ArtifactError(
            f"no row of the held-out text passes the token filter of {group[0].saved.folder}: "
            "evaluate more text with --n-tokens"
        )
    return total / n_rows, n_rows, sparsity


def draw_latents(
    subject: Subject, sparsity: SparsityStatistics, config: SteeringConfig
) -> Int[Tensor, " latents"]:
    """Live latents drawn at random, in ascending order.

    Raises:
        ArtifactError: fewer than two latents are alive.
    """
    alive = sparsity.count.nonzero().flatten()
    if len(alive) < 2:
        raise ArtifactError(
            f"{subject.saved.folder} has {len(alive)} live latents of "
            f"{subject.saved.dictionary.d_sae:,} on {sparsity.n_rows:,} held-out rows; steering "
            "compares at least 2: evaluate more text with --n-tokens, or train it longer"
        )
    order = torch.randperm(
        len(alive), generator=seeded_generator("steering", "latents", config.seed)
    )
    return alive[order[: config.n_latents].to(alive.device)].sort().values


def _steer(
    model: LanguageModel,
    spec: DataSpec,
    prompts: Int[Tensor, "contexts seq"],
    directions: Tensor,
    mean_norm: float,
    config: SteeringConfig,
    description: str,
) -> Effects:
    lengths = [strength * mean_norm for strength in config.strengths]
    total = len(prompts) * len(lengths) * len(directions)
    with progress_bar(total, f"steer {description}", "runs") as bar:
        return measure_effects(
            model,
            spec.hook_point,
            prompts,
            directions.to(model.device),
            lengths,
            n_top_tokens=config.n_top_tokens,
            batch_variants=config.batch_variants,
            bar=bar,
        )


def _as_text(model: LanguageModel, effects: Effects) -> list[list[list[str]]]:
    """Promoted tokens as text: by strength, latent and rank."""
    ids = effects.promoted.tolist()
    return [[model.token_strings(tokens) for tokens in latents] for latents in ids]


def _write(
    out: Path,
    result: EvaluationResult,
    findings: Findings,
    config: SteeringConfig,
    *,
    page: bool,
) -> EvaluationResult:
    # An old result stays until the new one replaces it: stopping here loses none.
    out.mkdir(parents=True, exist_ok=True)
    write_features(out / FEATURES_FILE, findings, config)
    page_if(page, out / REPORT_FILE, lambda path: write_report(path, result))
    written = write_evaluation_result(out / RESULT_FILE, result)
    logger.info("wrote %s", out / RESULT_FILE)
    return written
