"""Steers with the latents of dictionaries; those of one data spec share contexts and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import to_plain
from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import DataSpec, held_out_rows
from saelab.errors import ArtifactError, ConfigError
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.cosines import random_directions
from saelab.stats.metrics import SparsityStatistics
from saelab.stats.seeds import seeded_generator

from ..subjects import Subject, by_data_spec, describe, load_models, origin_of, subjects_of
from ..suite import Measurement
from .config import SteeringConfig
from .definitions import QUANTITIES, metric_name
from .effects import Effects, measure_effects
from .prompts import draw_prompts
from .summary import summarise

MOST_LISTED = 20
PLANTED = "planted:"


@dataclass(frozen=True, eq=False)
class SteeringFindings:
    """What was found out about one dictionary, and what it shares with others of its data spec."""

    latent: Int[Tensor, " latents"]
    """The steered latents, in ascending order."""
    density: Float[Tensor, " latents"]
    """Fraction of held-out rows on which each is active."""
    n_alive: int
    """Latents that could have been drawn."""
    effects: Effects
    """Of the latents."""
    random: Effects
    """Of the random directions."""
    promoted: list[list[list[str]]]
    """Promoted tokens as text: by strength, latent and rank."""
    mean_norm: float
    """Mean norm of the held-out rows."""
    n_rows: int
    """Those rows."""


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
        if str(saved.made_from.get("model", "")).startswith(PLANTED):
            raise ArtifactError(
                f"{saved.folder} was trained on planted features: there is no language model whose "
                "logits it could steer; judge it with `saelab eval recovery`"
            )
    subjects = subjects_of(dictionaries, outs, config)
    models = load_models(subjects, config.device)
    groups = by_data_spec(subjects)
    for spec in groups:
        _check_model(models[spec.model, spec.model_dtype], spec, config)
    for spec, group in groups.items():
        yield from _measure_group(models[spec.model, spec.model_dtype], spec, group, config)


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
    width = group[0].saved.dictionary.d_out
    floor = random_directions(config.n_random, width, config.seed)
    random = _steer(model, spec, prompts, floor, mean_norm, config, "random directions")
    for subject, counts, latent in zip(group, sparsity, drawn, strict=True):
        rows = subject.saved.dictionary.W_dec[latent].double()
        directions = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)).float()
        effects = _steer(model, spec, prompts, directions, mean_norm, config, subject.saved.name)
        findings = SteeringFindings(
            latent=latent.cpu(),
            density=counts.density()[latent].cpu(),
            n_alive=int((counts.count > 0).sum()),
            effects=effects,
            random=random,
            promoted=_as_text(model, effects),
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
        settings={
            "n_latents": len(findings.latent),
            "context_length": spec.context_length,
            "text": to_plain(spec.text),
            "split": "held_out",
            "row_rule": to_plain(spec.token_filter),
            "norm_ceiling": spec.norm_ceiling,
            "model_dtype": spec.model_dtype,
        },
        facts={
            "strengths": config.strengths,
            "mean_norm": findings.mean_norm,
            "n_rows": findings.n_rows,
            "n_latents": len(findings.latent),
            **{name: getattr(config, name) for name in counts},
        },
        data={**_data(findings, config), "in_short": _in_short(numbers, config)},
        rows={"features": _features(findings, config)},
        title=f"Steering with {saved.name}",
        subtitle=f"{describe(saved)}. {len(findings.latent)} live latents added at the last "
        f"position of {config.n_contexts} held-out contexts.",
    )


def _in_short(numbers: dict[str, float | int], config: SteeringConfig) -> list[list[Any]]:
    rows = []
    for strength in config.strengths:

        def number(quantity: str, what: str, strength: float = strength) -> float:
            return numbers[metric_name(quantity, what, strength)]

        means = [number(q, what) for q in QUANTITIES for what in ("mean", "random_mean")]
        low, high = (number("consistency", f"difference_{end}") for end in ("low", "high"))
        share = number("consistency", "share_above_random")
        rows.append([f"{strength:g}", *means, f"{low:+.3g} to {high:+.3g}", share])
    return rows


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
            spec.site.writes[0],
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


def _data(findings: SteeringFindings, config: SteeringConfig) -> dict[str, Any]:
    effects, random = findings.effects, findings.random
    names = [f"{strength:g}" for strength in config.strengths]
    figures: dict[str, Any] = {}
    for quantity in QUANTITIES:
        figures[f"{quantity}_distribution"] = {
            "n_contexts": config.n_contexts,
            "n_top_tokens": config.n_top_tokens,
            "latents": dict(zip(names, _sorted(getattr(effects, quantity)), strict=True)),
            "random": dict(zip(names, _sorted(getattr(random, quantity)), strict=True)),
        }
    middle = min(range(len(names)), key=lambda index: abs(config.strengths[index] - 1))
    figures["size_and_consistency"] = {
        "strength": config.strengths[middle],
        "latents": {
            "latent": findings.latent.tolist(),
            "size": _short(effects.size[middle].tolist()),
            "consistency": _short(effects.consistency[middle].tolist()),
            "tokens": [", ".join(map(repr, tokens[:5])) for tokens in findings.promoted[middle]],
        },
        "random": {
            "size": _short(random.size[middle].tolist()),
            "consistency": _short(random.consistency[middle].tolist()),
        },
    }
    order = effects.consistency[middle].argsort(descending=True)[:MOST_LISTED].tolist()
    figures["most_consistent"] = {
        "strength": config.strengths[middle],
        "latent": [int(findings.latent[row]) for row in order],
        "density": _short([float(findings.density[row]) for row in order]),
        "size": _short([float(effects.size[middle, row]) for row in order]),
        "consistency": _short([float(effects.consistency[middle, row]) for row in order]),
        "tokens": [" ".join(map(repr, findings.promoted[middle][row])) for row in order],
    }
    return figures


def _sorted(values: Float[Tensor, "strengths directions"]) -> list[list[float]]:
    return [_short(row) for row in values.sort(dim=1).values.tolist()]


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _features(findings: SteeringFindings, config: SteeringConfig) -> dict[str, Any]:
    """One parquet row per steered latent.

    Columns: latent, density, and per strength c size_c, consistency_c (logits) and tokens_c, the
    promoted tokens as text, the most promoted first.
    """
    import pyarrow

    columns: dict[str, Any] = {
        "latent": pyarrow.array(findings.latent.tolist(), pyarrow.int32()),
        "density": pyarrow.array(findings.density.tolist(), pyarrow.float64()),
    }
    for index, strength in enumerate(config.strengths):
        for quantity in QUANTITIES:
            values = getattr(findings.effects, quantity)[index].tolist()
            columns[f"{quantity}_c{strength:g}"] = pyarrow.array(values, pyarrow.float64())
        columns[f"tokens_c{strength:g}"] = pyarrow.array(
            findings.promoted[index], pyarrow.list_(pyarrow.string())
        )
    return columns
