"""Measures dictionaries for the suite "core"; those of one data spec share a pass over the text."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import DataSpec, ModelKey, recorded_mean
from saelab.dictionary.layered import LayeredDictionary
from saelab.memory import keep_freed_memory
from saelab.model.devices import resolve_device
from saelab.model.language_model import LanguageModel
from saelab.stats.metric_definitions import INFERENCE_MODES
from saelab.stats.metrics import (
    ReconstructionStatistics,
    SparsityStatistics,
    UndefinedMetricError,
    density_histogram,
    loss_recovered,
)

from ..alike import row_settings
from ..subjects import Subject, by_data_spec, describe, load_models, origin_of, subjects_of
from ..suite import Measurement
from .charts import MODE_COLUMNS
from .config import CoreConfig
from .losses import LossFindings, measure_losses
from .modes import SHUFFLE_SEED, ModeFindings, measure_modes
from .rows import RowFindings, measure_rows, training_fvu

logger = logging.getLogger(__name__)

TRAINING_MEAN = "the mean of the dictionary's training activations"
EVALUATED_MEAN = "the mean of the evaluated rows"
NO_LOSSES = {
    "adopted": "No language model: the activations are from elsewhere, so what splicing costs "
    "(losses, KL) is not measured.",
    "encoder": "The model is an encoder, whose tokens see those after them: no next token is "
    "predicted, so what splicing costs (losses, KL) is not measured.",
    "several": "The crosscoder is of several models, so what splicing costs one of them (losses, "
    "KL) is not measured.",
}
MOST_POINTS = 4096
MOST_L0_BARS = 60


def measure_core(
    folders: Sequence[Path], outs: Sequence[Path], config: CoreConfig
) -> Iterator[Measurement]:
    """Measure dictionaries; everything that can be wrong is checked before the first pass.

    Raises:
        ConfigError: settings that do not fit the model.
        ArtifactError: a folder that is no intact dictionary, or does not fit its model.
        ModelError: an unknown model or hook point.
        TextError: too little held-out text.
        ActivationError: activations that are not finite.
    """
    subjects = subjects_of([load_dictionary(folder) for folder in folders], outs, config)
    of_text = [subject for subject in subjects if subject.spec.adopted is None]
    models = load_models(of_text, config.device)
    # Each pass makes and frees the same hundreds of megabytes of logits: a fifth of its time.
    keep_freed_memory()
    for spec, group in by_data_spec(subjects).items():
        model = models[spec.model_key] if spec.adopted is None else None
        yield from _measure_group(model, spec, group, config, models)


def _loss_model(
    spec: DataSpec, config: CoreConfig, models: dict[ModelKey, LanguageModel]
) -> LanguageModel:
    """The model that losses are measured with: in bfloat16, rounding that changes with the shape
    of a batch moves loss recovered by a third of what methods differ by."""
    if config.model_dtype is None:
        spec = replace(spec, model_dtype="float32")
    if spec.model_key not in models:
        logger.info("losses are measured in float32: loading %s again", spec.model)
        models[spec.model_key] = spec.load_model(config.device)
    return models[spec.model_key]


def _measure_group(
    model: LanguageModel | None,
    spec: DataSpec,
    group: Sequence[Subject],
    config: CoreConfig,
    models: dict[ModelKey, LanguageModel],
) -> Iterator[Measurement]:
    dictionaries = [subject.saved for subject in group]
    device = resolve_device(config.device) if model is None else model.device
    for saved in dictionaries:
        saved.dictionary.to(device)
    recorded = [recorded_mean(saved, device) for saved in dictionaries]
    rows = measure_rows(model, spec, dictionaries, config, device)
    if rows.n_tokens < config.n_tokens:
        logger.warning(
            "there are %d held-out tokens or rows of the %d asked for: all were evaluated",
            rows.n_tokens,
            config.n_tokens,
        )
    if model is None or model.is_encoder or spec.models:
        for index, subject in enumerate(group):
            yield _measurement(subject, index, config, rows, None, None, TRAINING_MEAN)
        return
    evaluated_mean = rows.mean().float()
    means = [evaluated_mean if mean is None else mean for mean in recorded]
    model = _loss_model(spec, config, models)
    losses = measure_losses(model, spec, dictionaries, means, config)
    modes = measure_modes(model, spec, dictionaries, losses, config)
    for index, (subject, mean) in enumerate(zip(group, recorded, strict=True)):
        source = EVALUATED_MEAN if mean is None else TRAINING_MEAN
        yield _measurement(subject, index, config, rows, losses, modes.get(index), source)


def _measurement(
    subject: Subject,
    index: int,
    config: CoreConfig,
    rows: RowFindings,
    losses: LossFindings | None,
    modes: ModeFindings | None,
    mean_source: str,
) -> Measurement:
    """Everything measured about one dictionary, the one at `index` in the findings.

    `losses` and `modes` are None where no model predicts a next token.
    """
    saved, spec = subject.saved, subject.spec
    numbers: dict[str, Any] = {
        **rows.reconstruction[index].values(),
        **rows.sparsity[index].values(),
        **_counts(rows),
    }
    data = _data(index, rows, numbers)
    if rows.by_hook_point[index]:
        data["by_hook_point"] = _by_hook_point(subject, rows, index)
    settings = {
        "n_loss_tokens": config.loss_tokens,
        **row_settings(spec),
        "split": "held_out",
        "mean_ablation": mean_source,
    }
    facts = {
        "n_rows": numbers["n_rows"],
        "norm_ceiling": ", ".join(
            "none" if ceiling is None else f"{ceiling:.6g}" for ceiling in spec.norm_ceilings
        ),
    }
    items = {"features": _features(rows.sparsity[index])}
    if (trained := training_fvu(saved, rows.position_bin.device)) is not None:
        fvu, facts["n_training_rows"] = trained
        numbers |= {"fvu_train": fvu, "fvu_gap": numbers["fvu"] - fvu}
    if losses is not None:
        numbers |= losses.values(index) | _loss_counts(losses)
        data["losses"] = _loss_data(losses, numbers, mean_source)
        items["documents"] = {"document": [*losses.windows.names], **losses.sums(index)}
        facts |= {
            "n_loss_positions": losses.n_positions,
            "n_loss_documents": len(losses.windows.names),
            "mean_source": mean_source,
            "loss_excluded": ", ".join(f"{count:,} {n}" for n, count in losses.excluded.items()),
        }
    if losses is not None and modes is not None:
        in_modes = _mode_values(modes, losses, index)
        numbers |= in_modes
        facts |= _mode_facts(modes, in_modes)
        settings["inference_modes"] = _mode_settings(modes)
        data["inference_modes"] = {
            "mode": list(INFERENCE_MODES),
            **{
                name: [in_modes[f"mode_{mode}_{name}"] for mode in INFERENCE_MODES]
                for name in MODE_COLUMNS
            },
            "n_rows": in_modes["mode_n_rows"],
            "n_positions": losses.n_positions,
            "mean_source": mean_source,
        }
    return Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from=origin_of(subject),
        settings=settings,
        facts=facts,
        data=data,
        rows=items,
        seed=None if modes is None else SHUFFLE_SEED,
        title=f"Core evaluation of {saved.name}",
        subtitle=f"{describe(saved)}. {spec.in_words}.",
        notes=(_where_measured(losses, spec),),
    )


def _by_hook_point(subject: Subject, rows: RowFindings, index: int) -> dict[str, list[Any]]:
    """Columns of a table: errors at each hook point, and L0 where layers have their own latents."""
    errors, sparsity = rows.by_hook_point[index], rows.sparsity[index]
    columns: dict[str, list[Any]] = {
        "hook point": [*subject.spec.site.writes],
        "FVU": [_fvu_at(each) for each in errors],
    }
    if isinstance(subject.saved.dictionary, LayeredDictionary):
        bounds = pairwise(subject.saved.dictionary.starts)
        counts = [int(sparsity.count[start:stop].sum()) for start, stop in bounds]
        columns["L0"] = [count / sparsity.n_rows for count in counts]
    return columns


def _fvu_at(errors: ReconstructionStatistics) -> float | None:
    try:
        return float(errors.values()["fvu"])
    except UndefinedMetricError:  # A hook point at which nothing varies.
        return None


def _features(sparsity: SparsityStatistics) -> dict[str, Any]:
    """One row per latent: how often, how strongly on average and at most it was active.

    Columns: latent, count (rows on which the code is positive), density (count / rows),
    mean_activation and max_activation (of the positive codes; null where there is none).
    """
    import pyarrow

    count = sparsity.count.cpu().numpy()
    never = count == 0
    return {
        "latent": pyarrow.array(range(len(count)), pyarrow.int32()),
        "count": pyarrow.array(count, pyarrow.int64()),
        "density": pyarrow.array(sparsity.density().cpu().numpy()),
        "mean_activation": pyarrow.array(sparsity.mean_when_active().cpu().numpy(), mask=never),
        "max_activation": pyarrow.array(sparsity.maximum.cpu().numpy(), mask=never),
    }


def _counts(rows: RowFindings) -> dict[str, int]:
    return {
        "n_contexts": rows.n_contexts,
        "n_tokens": rows.n_tokens,
        **{f"n_excluded_{reason}": count for reason, count in rows.excluded.items()},
    }


def _where_measured(losses: LossFindings | None, spec: DataSpec) -> str:
    """On how much text losses were measured: short documents leave part of their window empty."""
    if losses is None:
        return NO_LOSSES["adopted" if spec.adopted else "several" if spec.models else "encoder"]
    n_documents = len(losses.windows.names)
    return f"Losses and KL: {losses.n_positions:,} predicted positions, {n_documents:,} documents."


def _loss_counts(losses: LossFindings) -> dict[str, int]:
    return {
        "n_loss_documents": len(losses.windows.names),
        "n_loss_contexts": len(losses.windows.text),
        "n_loss_positions": losses.n_positions,
        "n_loss_rows_replaced": losses.n_replaced,
        "n_loss_rows_kept": sum(losses.excluded.values()),
    }


def _mode_values(
    findings: ModeFindings, losses: LossFindings, index: int
) -> dict[str, float | int | None]:
    n = losses.n_positions
    clean, zero, mean = (
        float(sums.sum()) / n
        for sums in (losses.clean, losses.zero_ablation, losses.mean_ablation[index])
    )
    numbers: dict[str, float | int | None] = {}
    for mode, sums in findings.sums.items():
        rows = sums.reconstruction.values()
        spliced = sums.spliced / n
        values = {
            "l0_mean": sums.active / rows["n_rows"],
            "fvu": rows["fvu"],
            "loss_spliced": spliced,
            "loss_recovered_zero": loss_recovered(clean, spliced, zero),
            "loss_recovered_mean": loss_recovered(clean, spliced, mean),
            "kl": sums.kl / n,
        }
        numbers |= {f"mode_{mode}_{name}": value for name, value in values.items()}
        numbers["mode_n_rows"] = rows["n_rows"]
    return numbers


def _mode_facts(findings: ModeFindings, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "n_mode_rows": values["mode_n_rows"],
        "mode_beta": f"{findings.modes.beta:g}",
        "mode_threshold": f"{findings.modes.threshold_value:.4g} activation units",
    }


def _mode_settings(findings: ModeFindings) -> dict[str, Any]:
    modes = findings.modes
    return {
        "beta": modes.beta,
        "gradient_rms": modes.gradient_rms,
        "gradient_scale": "token" if modes.per_token else "all",
        "threshold": modes.threshold_value,
        "control_shuffle_seed": SHUFFLE_SEED,
    }


def _loss_data(losses: LossFindings, values: dict[str, Any], mean_source: str) -> dict[str, Any]:
    conditions = ("clean", "spliced", "mean_ablation", "zero_ablation")
    return {
        "loss": {condition: values[f"loss_{condition}"] for condition in conditions},
        "n_positions": losses.n_positions,
        "mean_source": mean_source,
    }


def _data(index: int, rows: RowFindings, values: dict[str, Any]) -> dict[str, Any]:
    reconstruction, sparsity = rows.reconstruction[index], rows.sparsity[index]
    data = {
        "density_histogram": {
            **density_histogram(sparsity.density(), sparsity.n_rows),
            "n_rows": sparsity.n_rows,
        },
        "l0_histogram": {
            **_l0_bars(sparsity),
            "mean": values["l0_mean"],
            "median": values["l0_q50"],
        },
        "error_by_norm": reconstruction.error_by_norm(),
        "density_and_strength": _points(sparsity),
    }
    if len(rows.position_bin) > 1:  # Adopted rows may be no contexts.
        curve = _position_curve(rows, reconstruction.fvu_by_group())
        data["fvu_by_position"] = {**curve, "pooled": values["fvu"]}
    return data


def _l0_bars(sparsity: SparsityStatistics) -> dict[str, list[int]]:
    """L0 counts in bars of equal whole width, as narrow as the number of bars allows."""
    levels = sparsity.l0_histogram.nonzero().flatten()
    lowest, highest = int(levels[0]), int(levels[-1])
    width = -(-(highest - lowest + 1) // MOST_L0_BARS)
    bar = (levels - lowest) // width
    counts = torch.zeros(int(bar[-1]) + 1, dtype=torch.int64, device=levels.device)
    counts.index_add_(0, bar, sparsity.l0_histogram[levels])
    starts = [lowest + index * width for index in range(len(counts))]
    return {
        "l0_from": starts,
        "l0_to": [start + width - 1 for start in starts],
        "rows": counts.tolist(),
    }


def _position_curve(rows: RowFindings, curve: list[float | None]) -> dict[str, list[Any]]:
    """The bins with evaluated rows, and their first and last positions."""
    bins = rows.position_bin.tolist()
    known = [(index, value) for index, value in enumerate(curve) if value is not None]
    return {
        "position_from": [bins.index(index) for index, _ in known],
        "position_to": [len(bins) - 1 - bins[::-1].index(index) for index, _ in known],
        "fvu": [value for _, value in known],
    }


def _points(sparsity: SparsityStatistics) -> dict[str, Any]:
    """The active latents, or `MOST_POINTS` of them at even distances, for a scatter plot."""
    alive = sparsity.count.nonzero().flatten()
    shown = alive
    if len(alive) > MOST_POINTS:
        shown = alive[torch.arange(MOST_POINTS, device=alive.device) * len(alive) // MOST_POINTS]
    density, strength = sparsity.density()[shown], sparsity.mean_when_active()[shown]
    return {
        "latent": shown.tolist(),
        "density": [float(f"{value:.6g}") for value in density.tolist()],
        "mean_activation": [float(f"{value:.6g}") for value in strength.tolist()],
        "n_alive": len(alive),
    }
