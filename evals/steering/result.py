"""From effects to a dictionary's result: metrics, figure data, and one row per steered latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import to_plain
from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric
from saelab.formats.files import atomic_path
from saelab.text.contexts import describe_text

from .config import SteeringConfig
from .definitions import metric_name, metrics_of
from .effects import Effects
from .summary import summarise

SUITE = "steering"
FEATURES_FILE = "steering_features.parquet"
MOST_LISTED = 20
QUANTITIES = ("size", "consistency")


@dataclass(frozen=True, eq=False)
class Findings:
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


def build_result(
    saved: SavedDictionary, spec: DataSpec, findings: Findings, config: SteeringConfig
) -> EvaluationResult:
    """Everything measured about one dictionary."""
    return EvaluationResult(
        suite=SUITE,
        dictionary_name=saved.name,
        dictionary_hash=saved.content_hash,
        settings={
            "n_latents": len(findings.latent),
            "n_contexts": config.n_contexts,
            "prompt_tokens": config.prompt_tokens,
            "strengths": list(config.strengths),
            "n_random": config.n_random,
            "n_top_tokens": config.n_top_tokens,
            "n_bootstrap": config.n_bootstrap,
            "n_tokens": config.n_tokens,
            "context_length": spec.context_length,
            "text": to_plain(spec.text),
            "split": "held_out",
            "row_rule": to_plain(spec.token_filter),
            "norm_ceiling": spec.norm_ceiling,
            "model_dtype": spec.model_dtype,
            "device": config.device,
        },
        made_from={
            "model": spec.model,
            "model_hash": spec.model_hash,
            "hook_point": spec.hook_point,
            "text": describe_text(spec.text),
            "split": "held_out",
            "architecture": saved.dictionary.architecture,
            "d_in": saved.dictionary.d_in,
            "d_sae": saved.dictionary.d_sae,
        },
        metrics=(*_counts(findings), *_metrics(findings, config)),
        figure_data=_figure_data(findings, config),
        item_files={"features": FEATURES_FILE},
        seed=config.seed,
    )


def _counts(findings: Findings) -> list[MeasuredMetric]:
    rows = f"the {findings.n_rows:,} held-out rows"
    return [
        MeasuredMetric(
            name="mean_norm",
            value=findings.mean_norm,
            unit="activation units",
            definition=f"Mean |x| over {rows}: what strengths are multiples of.",
        ),
        MeasuredMetric(
            name="n_alive",
            value=findings.n_alive,
            unit="latents",
            definition=f"Latents that are active on at least one of {rows}; the steered ones are "
            "drawn from them.",
        ),
        MeasuredMetric(
            name="n_latents",
            value=len(findings.latent),
            unit="latents",
            definition="Steered latents.",
        ),
    ]


def _metrics(findings: Findings, config: SteeringConfig) -> list[MeasuredMetric]:
    n_choosing = config.n_contexts // 2
    metrics = []
    for place, strength in enumerate(config.strengths):
        facts = {
            "length": strength * findings.mean_norm,
            "n_contexts": config.n_contexts,
            "n_choosing": n_choosing,
            "n_testing": config.n_contexts - n_choosing,
            "n_top_tokens": config.n_top_tokens,
            "n_latents": len(findings.latent),
            "n_random": config.n_random,
            "n_bootstrap": config.n_bootstrap,
            "seed": config.seed,
        }
        for quantity in QUANTITIES:
            values = summarise(
                getattr(findings.effects, quantity)[place],
                getattr(findings.random, quantity)[place],
                n_bootstrap=config.n_bootstrap,
                seed=config.seed,
            )
            metrics += metrics_of(quantity, strength, values, facts)
    return metrics


def _figure_data(findings: Findings, config: SteeringConfig) -> dict[str, Any]:
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
    middle = min(range(len(names)), key=lambda place: abs(config.strengths[place] - 1))
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


def write_features(path: Path, findings: Findings, config: SteeringConfig) -> None:
    """One parquet row per steered latent.

    Columns: latent, density, and per strength c size_c, consistency_c (logits) and tokens_c, the
    promoted tokens as text, the most promoted first.
    """
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "latent": pyarrow.array(findings.latent.tolist(), pyarrow.int32()),
        "density": pyarrow.array(findings.density.tolist(), pyarrow.float64()),
    }
    for place, strength in enumerate(config.strengths):
        for quantity in QUANTITIES:
            values = getattr(findings.effects, quantity)[place].tolist()
            columns[f"{quantity}_c{strength:g}"] = pyarrow.array(values, pyarrow.float64())
        columns[f"tokens_c{strength:g}"] = pyarrow.array(
            findings.promoted[place], pyarrow.list_(pyarrow.string())
        )
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)


def headline(result: EvaluationResult, quantity: str, strength: float) -> dict[str, float]:
    """The numbers of one quantity at one strength that matter most.

    Raises:
        ArtifactError: the result has no such numbers.
    """
    whats = ("mean", "random_mean", "difference_low", "difference_high", "share_above_random")
    found = {what: result.value(metric_name(quantity, what, strength)) for what in whats}
    return {what: float(value) for what, value in found.items() if value is not None}
