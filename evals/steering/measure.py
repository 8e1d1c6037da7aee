"""Steers with the latents of dictionaries; those of one data spec share contexts and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import held_out_batches, held_out_rows, select
from saelab.errors import ArtifactError, ConfigError, TextError
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.cosines import random_directions
from saelab.stats.metrics import SparsityStatistics
from saelab.stats.seeds import seeded_generator
from saelab.text.contexts import TextBatch

from ..alike import is_planted, row_settings
from ..subjects import Subject, by_data_spec, describe, load_models, origin_of, subjects_of
from ..suite import Measurement
from .effects import Effects, measure_effects
from .numbers import QUANTITIES, metric_name, summarise
from .suite import SteeringConfig

POOL_PER_CONTEXT = 64
"""Contexts are drawn from this many times as many, so that they come from many documents."""
BATCH = 64


@dataclass(frozen=True, eq=False)
class SteeringFindings:
    """What is known of one dictionary, and what it shares with others of its data spec."""

    latent: Int[Tensor, " latents"]
    """The steered latents, in ascending order."""
    density: Float[Tensor, " latents"]
    """Fraction of the held-out rows on which each is active."""
    n_alive: int
    """Latents that could have been drawn."""
    effects: Effects
    """Of the latents."""
    random: Effects
    """Of the random directions."""
    promoted: list[list[list[str]]]
    """Promoted tokens as text: by strength, latent and rank."""
    mean_norm: float
    """Of the held-out rows."""
    n_rows: int


def measure_steering(
    folders: Sequence[Path], outs: Sequence[Path], config: SteeringConfig
) -> Iterator[Measurement]:
    """Measure dictionaries; everything that can be wrong is checked before the first pass.

    Raises:
        ConfigError: settings that do not fit the model.
        ArtifactError: a folder that is no intact dictionary, does not fit its model, or has too few
            live latents.
        ModelError: an unknown model or hook point, or one where nothing can be spliced in.
        TextError: too little held-out text.
        ActivationError: activations or logits that are not finite.
    """
    dictionaries = [load_dictionary(folder) for folder in folders]
    for saved in dictionaries:
        if is_planted(saved):
            raise ArtifactError(
                f"{saved.folder} was trained on planted features: there is no language model whose "
                "logits it could steer; judge it with `saelab eval recovery`"
            )
    subjects = subjects_of(dictionaries, outs, config)
    models = load_models(subjects, config.device)
    groups = by_data_spec(subjects)
    for spec in groups:
        _check_model(models[spec.model_key], spec, config)
    for spec, group in groups.items():
        yield from _measure_group(models[spec.model_key], spec, group, config)


def _check_model(model: LanguageModel, spec: DataSpec, config: SteeringConfig) -> None:
    problems = []
    for name in spec.site.writes:
        model.require_spliceable(name)
    if len(spec.site.writes) > 1:
        problems.append(
            f"steering adds a direction at one hook point; a dictionary of {spec.site} writes "
            f"{len(spec.site.writes)}: give dictionaries that write one"
        )
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


def _measure_group(
    model: LanguageModel, spec: DataSpec, group: Sequence[Subject], config: SteeringConfig
) -> Iterator[Measurement]:
    for subject in group:
        subject.saved.dictionary.to(model.device)
    mean_norm, n_rows, sparsity = _look_at_rows(model, spec, group, config)
    drawn = [
        draw_latents(subject, counts, config)
        for subject, counts in zip(group, sparsity, strict=True)
    ]
    prompts = draw_prompts(
        model, spec, count=config.n_contexts, length=config.prompt_tokens, seed=config.seed
    )

    (written,) = spec.site.writes

    def steer(directions: Float[Tensor, "directions d_out"], name: str) -> Effects:
        return measure_effects(
            model, written, prompts, directions.to(model.device), mean_norm, config, name
        )

    width = group[0].saved.dictionary.d_out
    random = steer(random_directions(config.n_random, width, config.seed), "random directions")
    for subject, counts, latent in zip(group, sparsity, drawn, strict=True):
        rows = subject.saved.dictionary.W_dec[latent].double()
        directions = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)).float()
        effects = steer(directions, subject.saved.name)
        findings = SteeringFindings(
            latent=latent.cpu(),
            density=counts.density()[latent].cpu(),
            n_alive=int((counts.count > 0).sum()),
            effects=effects,
            random=random,
            promoted=[
                [model.token_strings(tokens) for tokens in latents]
                for latents in effects.promoted.tolist()
            ],
            mean_norm=mean_norm,
            n_rows=n_rows,
        )
        yield _measurement(subject, findings, config)


def _measurement(
    subject: Subject, findings: SteeringFindings, config: SteeringConfig
) -> Measurement:
    saved, spec = subject.saved, subject.spec
    numbers: dict[str, float | int] = {
        "mean_norm": findings.mean_norm,
        "n_alive": findings.n_alive,
        "n_latents": len(findings.latent),
    }
    for index, strength in enumerate(config.strengths):
        for quantity in QUANTITIES:
            summary = summarise(
                getattr(findings.effects, quantity)[index],
                getattr(findings.random, quantity)[index],
                n_bootstrap=config.n_bootstrap,
                seed=config.seed,
            )
            numbers |= {metric_name(quantity, what, strength): v for what, v in summary.items()}
    counts = ("n_contexts", "n_random", "n_top_tokens", "n_bootstrap", "seed")
    return Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from=origin_of(subject),
        settings={"n_latents": len(findings.latent), "split": "held_out", **row_settings(spec)},
        facts={
            "strengths": config.strengths,
            "mean_norm": findings.mean_norm,
            "n_rows": findings.n_rows,
            "n_latents": len(findings.latent),
            **{name: getattr(config, name) for name in counts},
        },
        data={"findings": findings, "config": config, "numbers": numbers},
        rows={"features": _features(findings, config)},
        title=f"Steering with {saved.name}",
        subtitle=f"{describe(saved)}. {len(findings.latent)} live latents added at the last "
        f"position of {config.n_contexts} held-out contexts.",
    )


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
            total += float(rows.targets.double().norm(dim=1).sum())
            n_rows += len(rows.targets)
            for subject, counts in zip(group, sparsity, strict=True):
                counts.update(subject.saved.dictionary.encode(rows.inputs))
            bar.update(len(rows.targets))
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


def draw_prompts(
    model: LanguageModel, spec: DataSpec, *, count: int, length: int, seed: int
) -> Int[Tensor, "contexts seq"]:
    """Draw contexts from the held-out text, of which the last position is an evaluated row.

    Raises:
        TextError: too little held-out text.
        ConfigError: contexts longer than the model's.
    """
    short = replace(spec, context_length=length)
    n_tokens = POOL_PER_CONTEXT * count * length
    pool = TextBatch.joined([*held_out_batches(model, short, n_tokens, BATCH)])
    order = torch.randperm(len(pool), generator=seeded_generator("steering", "prompts", seed))
    usable = _usable(model, short, pool[order])
    chosen = list(islice(usable, count))
    if len(chosen) < count:
        raise TextError(
            f"the held-out text gives {len(chosen)} contexts of {length} tokens that end in an "
            f"evaluated row; {count} were asked for: give more text, or lower --n-contexts or "
            "--prompt-tokens"
        )
    return torch.stack(chosen)


def _usable(model: LanguageModel, spec: DataSpec, pool: TextBatch) -> Iterator[Int[Tensor, " seq"]]:
    """The contexts whose last position counts as a row, computed as they are needed."""
    for start in range(0, len(pool), BATCH):
        batch = pool[start : start + BATCH]
        captured = model.capture(batch.tokens, spec.site.hook_points)
        keep, _ = select(model, spec, batch, captured)
        yield from batch.tokens[keep[:, -1].cpu()]


def _features(findings: SteeringFindings, config: SteeringConfig) -> dict[str, Any]:
    """One parquet row per steered latent.

    Columns: latent, density, and per strength c size_c, consistency_c (logits) and tokens_c, the
    promoted tokens as text, the most promoted first.
    """
    columns: dict[str, Any] = {"latent": findings.latent, "density": findings.density}
    for index, strength in enumerate(config.strengths):
        for quantity in QUANTITIES:
            columns[f"{quantity}_c{strength:g}"] = getattr(findings.effects, quantity)[index]
        columns[f"tokens_c{strength:g}"] = findings.promoted[index]
    return columns
