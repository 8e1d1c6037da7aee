"""From text to rows: the one generator behind the cache writer and the stream without a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ActivationError, ConfigError
from saelab.model.language_model import LanguageModel
from saelab.text.contexts import context_batches

from .config import HarvestConfig
from .rows import select_rows

# Contexts whose median norm sets the ceiling: a median needs no more, and they are not run twice.
CALIBRATION_CONTEXTS = 32


@dataclass(frozen=True, kw_only=True)
class CapturedBatch:
    """One forward pass: every position of some contexts, at every hook point."""

    first_context: int
    tokens: Int[Tensor, "batch seq"]
    activations: dict[str, Tensor]
    """Hook point to [batch seq d_in], in the model's dtype."""
    gradients: dict[str, Tensor] | None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that are kept of one batch at one hook point, in reading order."""

    activations: Float[Tensor, "rows d_in"]
    gradients: Float[Tensor, "rows d_in"] | None
    tokens: Int[Tensor, " rows"]
    sequence: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    excluded: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Norms of the rows of the first contexts, and the ceiling that they set for all rows."""

    contexts: int
    rows: int
    median_norm: float
    mean_norm: float
    norm_ceiling: float | None

    def to_json(self) -> dict[str, float | int | None]:
        """The calibration as plain JSON values."""
        return asdict(self)


def check_model(model: LanguageModel, config: HarvestConfig) -> dict[str, int]:
    """Check that a model can do what a config asks, and tell the width of each hook point.

    Raises:
        ConfigError: another model than the config's, contexts longer than the model takes, or
            another dtype.
        ModelError: a hook point that the model does not have.
    """
    problems = []
    if model.name != config.model:
        problems.append(f"model: the config names {config.model!r} but {model.name!r} was given")
    if config.context_length > model.max_context:
        problems.append(
            f"context_length: {config.context_length} is longer than the "
            f"{model.max_context} tokens that {model.name} takes"
        )
    if str(model.dtype) != f"torch.{config.model_dtype}":
        problems.append(
            f"model_dtype: {config.model_dtype} was asked for but {model.name} is in {model.dtype}"
        )
    if problems:
        raise ConfigError(problems)
    return {hook_point: model.width_at(hook_point) for hook_point in config.hook_points}


def capture_batches(
    model: LanguageModel, config: HarvestConfig, *, first_context: int = 0
) -> Iterator[CapturedBatch]:
    """Run the model over the training text, batch by batch, until `n_tokens` or the text's end.

    Args:
        first_context: where to start; a multiple of `batch_contexts`, so that batches (and with
            them the last bits of every sum) are the same wherever a run was interrupted.

    Raises:
        TextError: the text does not fill the first batch.
    """
    batches = context_batches(
        config.text,
        model,
        split="train",
        context_length=config.context_length,
        batch_contexts=config.batch_contexts,
        skip_contexts=first_context,
    )
    next_context = first_context
    for tokens in batches:
        if config.n_contexts is not None:
            tokens = tokens[: config.n_contexts - next_context]
        if len(tokens) == 0:
            return
        yield _capture(model, config, tokens, next_context)
        next_context += len(tokens)
        if next_context == config.n_contexts:
            return


def _capture(
    model: LanguageModel, config: HarvestConfig, tokens: Int[Tensor, "batch seq"], first: int
) -> CapturedBatch:
    gradients = None
    if config.gradients:
        both = model.capture_with_gradients(tokens, config.hook_points)
        activations = {hook_point: pair[0] for hook_point, pair in both.items()}
        gradients = {hook_point: pair[1] for hook_point, pair in both.items()}
    else:
        activations = model.capture(tokens, config.hook_points)
    return CapturedBatch(
        first_context=first, tokens=tokens, activations=activations, gradients=gradients
    )


def keep_rows(
    batch: CapturedBatch,
    model: LanguageModel,
    config: HarvestConfig,
    norm_ceilings: Mapping[str, float | None],
) -> dict[str, Rows]:
    """The rows of a batch that the token filter keeps, by hook point.

    Hook points harvested together have the same rows: one that is excluded at any of them is
    excluded at all, and counted at the others as `norm_at:<hook point>`, since tokens and positions
    are the same everywhere.

    Args:
        batch: the forward pass.
        model: of the config.
        config: whose token filter it is.
        norm_ceilings: of each hook point.

    Raises:
        ActivationError: an activation or a gradient is NaN or infinite; the message names context
            and position.
    """
    selections = {
        hook_point: select_rows(
            config.rows,
            batch.tokens,
            batch.activations[hook_point],
            special_ids=model.special_ids,
            bos_id=model.bos_id,
            norm_ceiling=ceiling,
            first_context=batch.first_context,
        )
        for hook_point, ceiling in norm_ceilings.items()
    }
    kept: dict[str, Rows] = {}
    for hook_point, selection in selections.items():
        keep, excluded = selection.keep, dict(selection.excluded)
        for elsewhere, other in selections.items():
            if elsewhere != hook_point:
                other_keep = other.keep.to(keep.device)
                excluded[f"norm_at:{elsewhere}"] = int((keep & ~other_keep).sum())
                keep = keep & other_keep
        kept[hook_point] = _rows_at(batch, hook_point, keep, excluded)
    return kept


def _rows_at(
    batch: CapturedBatch,
    hook_point: str,
    keep: Bool[Tensor, "batch seq"],
    excluded: dict[str, int],
) -> Rows:
    activations = batch.activations[hook_point]
    kept = keep.flatten().nonzero().squeeze(1)
    gradients = None
    if batch.gradients is not None:
        gradients = batch.gradients[hook_point].flatten(0, 1).index_select(0, kept)
        _require_finite_gradients(gradients, kept, batch)
    on_host = kept.cpu()
    length = batch.tokens.shape[1]
    return Rows(
        activations=activations.flatten(0, 1).index_select(0, kept),
        gradients=gradients,
        tokens=batch.tokens.flatten()[on_host.to(batch.tokens.device)].cpu(),
        sequence=batch.first_context + on_host // length,
        position=on_host % length,
        excluded=excluded,
    )


def _require_finite_gradients(
    gradients: Float[Tensor, "rows d_in"], kept: Int[Tensor, " rows"], batch: CapturedBatch
) -> None:
    finite = gradients.float().isfinite().all(dim=1)
    if not bool(finite.all()):
        where = int(kept[int((~finite).int().argmax())])
        context, position = divmod(where, batch.tokens.shape[1])
        raise ActivationError(
            f"gradients of context {batch.first_context + context} at position {position} hold a "
            "NaN or an infinity: compute the model in float32 or bfloat16, or check the model"
        )


def calibrate(
    batches: list[CapturedBatch], hook_point: str, model: LanguageModel, config: HarvestConfig
) -> Calibration:
    """Measure the median norm over the first contexts, and set the ceiling of the norm rule.

    Only rows that no other part of the rule excludes are counted.

    Raises:
        ActivationError: no row is left, or an activation is not finite.
    """
    norms = []
    for batch in batches:
        selection = select_rows(
            config.rows,
            batch.tokens,
            batch.activations[hook_point],
            special_ids=model.special_ids,
            bos_id=model.bos_id,
            norm_ceiling=None,
            first_context=batch.first_context,
        )
        norms.append(selection.norms[selection.keep].cpu())
    pooled = torch.cat(norms).double()
    if len(pooled) == 0:
        raise ActivationError(
            "the token filter excludes every position of the first contexts: relax rows.* of the "
            "config"
        )
    median, ratio = float(pooled.median()), config.rows.max_norm_ratio
    return Calibration(
        contexts=sum(len(batch.tokens) for batch in batches),
        rows=len(pooled),
        median_norm=median,
        mean_norm=float(pooled.mean()),
        norm_ceiling=None if ratio is None else ratio * median,
    )


def calibration_batches(config: HarvestConfig) -> int:
    """Batches that hold the calibration's contexts."""
    return -(-CALIBRATION_CONTEXTS // config.batch_contexts)
