"""From text to rows: what the cache writer and the stream without a cache have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ActivationError, ConfigError
from saelab.model.identity import identity_of
from saelab.model.language_model import LanguageModel, load_language_model
from saelab.model.model_files import require_context
from saelab.text.contexts import (
    Counts,
    TextBatch,
    describe_text,
    left_out_of_training,
    require_held_out,
    text_batches,
)

from .config import HarvestConfig
from .format import new_cache_manifest
from .rows import RowSelection, capture_with_gradients, find_norm_ceiling, select_rows

# Contexts whose norms set the ceiling: its quantiles need no more, and they are not run twice.
CALIBRATION_CONTEXTS = 32


@dataclass(frozen=True, kw_only=True)
class CapturedBatch:
    """One forward pass: every position of some contexts, at every hook point."""

    first_context: int
    text: TextBatch
    activations: dict[str, Tensor]
    """Hook point to [batch seq d_in], in the model's dtype."""
    gradients: dict[str, Tensor] | None
    read: dict[str, dict[str, int]]
    """What became of all text up to these contexts, by source."""

    @property
    def tokens(self) -> Int[Tensor, "batch seq"]:
        """Token ids."""
        return self.text.tokens


def load_model(config: HarvestConfig) -> LanguageModel:
    """The model of a harvest; contexts too long for it are refused before its weights are read.

    Raises:
        ConfigError: they are.
        ModelError: there is no such model.
    """
    require_context(config.model, config.context_length)
    return load_language_model(
        config.model,
        dtype=config.model_dtype,
        device=config.device,
        model_kwargs=config.model_kwargs,
    )


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


class Harvest:
    """Forward passes of a model over a text, and which of their rows are kept.

    Args:
        model: the model of `config`.
        config: what to harvest.

    Raises:
        ConfigError: another model than the config's, contexts longer than the model takes, or
            another dtype.
        ModelError: a hook point that the model does not have.
        TextError: what is held out of the text fills no context.
    """

    def __init__(self, model: LanguageModel, config: HarvestConfig):
        problems = []
        if model.name != config.model:
            problems.append(
                f"model: the config names {config.model!r} but {model.name!r} was given"
            )
        if config.context_length > model.max_context:
            problems.append(
                f"context_length: {config.context_length} is longer than the "
                f"{model.max_context} tokens that {model.name} takes"
            )
        if str(model.dtype) != f"torch.{config.model_dtype}":
            problems.append(
                f"model_dtype: {config.model_dtype} was asked for but {model.name} is in "
                f"{model.dtype}"
            )
        if problems:
            raise ConfigError(problems)
        self.model = model
        self.config = config
        self.widths = {hook_point: model.width_at(hook_point) for hook_point in config.hook_points}
        self.calibration_batches = -(-CALIBRATION_CONTEXTS // config.batch_contexts)
        self.read_to_end: dict[str, dict[str, int]] | None = None
        """What became of all the text, by source, once `batches` came to its end."""
        require_held_out(config.text, model, config.context_length)
        self.left_out = left_out_of_training(config.text)
        """Documents that training does not read, since they repeat held-out ones."""

    def batches(self, *, first_context: int = 0) -> Iterator[CapturedBatch]:
        """Run the model over the training text, batch by batch, until `n_tokens` or its end.

        Args:
            first_context: where to start; a multiple of `batch_contexts`, so that batches (and with
                them the last bits of every sum) are the same wherever a run was interrupted.

        Raises:
            TextError: the text does not fill the first batch.
        """
        config = self.config
        counts: Counts = defaultdict(Counter)
        batches = text_batches(
            config.text,
            self.model,
            split="train",
            context_length=config.context_length,
            batch_contexts=config.batch_contexts,
            skip_contexts=first_context,
            counts=counts,
        )
        next_context = first_context
        for batch in batches:
            if config.n_contexts is not None:
                batch = batch[: config.n_contexts - next_context]
            if len(batch) == 0:
                return
            yield self._capture(batch, next_context, counts)
            next_context += len(batch)
            if next_context == config.n_contexts:
                return
        self.read_to_end = _plain(counts)

    def _capture(self, batch: TextBatch, first: int, counts: Counts) -> CapturedBatch:
        hook_points, gradients = self.config.hook_points, None
        if self.config.gradients:
            both = capture_with_gradients(self.model, batch, hook_points)
            activations = {hook_point: pair[0] for hook_point, pair in both.items()}
            gradients = {hook_point: pair[1] for hook_point, pair in both.items()}
        else:
            activations = self.model.capture(batch.tokens, hook_points)
        return CapturedBatch(
            first_context=first,
            text=batch,
            activations=activations,
            gradients=gradients,
            read=_plain(counts),
        )

    def _select(
        self, batch: CapturedBatch, hook_point: str, norm_ceiling: float | None
    ) -> RowSelection:
        return select_rows(
            self.config.rows,
            batch.tokens,
            batch.activations[hook_point],
            special_ids=self.model.special_ids,
            bos_id=self.model.bos_id,
            norm_ceiling=norm_ceiling,
            first_context=batch.first_context,
            left_out=batch.text.left_out,
        )

    def keep_rows(
        self, batch: CapturedBatch, norm_ceilings: Mapping[str, float | None]
    ) -> dict[str, Rows]:
        """The rows of a batch that the token filter keeps, by hook point; see `rows_beside`.

        Args:
            batch: the forward pass.
            norm_ceilings: of each hook point.

        Raises:
            ActivationError: an activation or a gradient is NaN or infinite; the message names
                context and position.
        """
        return rows_beside(
            batch, {name: self._select(batch, name, c) for name, c in norm_ceilings.items()}
        )

    def calibrate(self, batches: list[CapturedBatch], hook_point: str) -> Calibration:
        """Set the ceiling of the norm rule by the norms of the first contexts.

        Only rows that no other part of the rule excludes are counted.

        Raises:
            ActivationError: no row is left, most are zero, or an activation is not finite.
        """
        selections = [self._select(batch, hook_point, None) for batch in batches]
        norms = torch.cat([s.norms[s.keep].cpu() for s in selections]).double()
        if len(norms) == 0:
            raise ActivationError(
                "the token filter excludes every position of the first contexts: relax rows.* of "
                "the config" + (", or name other text.roles" if self.config.text.roles else "")
            )
        return Calibration(
            contexts=sum(len(batch.tokens) for batch in batches),
            rows=len(norms),
            median_norm=float(norms.median()),
            mean_norm=float(norms.mean()),
            norm_ceiling=find_norm_ceiling(self.config.rows, norms, hook_point),
        )

    def provenance(
        self, hook_point: str, norm_ceiling: float | None, text_hash: str | None
    ) -> dict[str, Any]:
        """What rows of this harvest are made from, as every later artifact records it.

        Args:
            hook_point: of the rows.
            norm_ceiling: norm above which rows are excluded.
            text_hash: `content_hash` of `describe_text`; None where the content is unknown.
        """
        settings = self.config.to_json()
        return {
            "model": self.config.model,
            **identity_of(self.model),
            "hook_point": hook_point,
            "text": settings["text"],
            "text_hash": text_hash,
            "context_length": self.config.context_length,
            "prepend_bos": self.model.bos_id is not None,
            "row_rule": settings["rows"],
            "norm_ceiling": norm_ceiling,
            "model_dtype": self.config.model_dtype,
            **({"model_kwargs": settings["model_kwargs"]} if self.config.model_kwargs else {}),
        }

    def new_manifest(self, hook_point: str, calibration: Calibration) -> dict[str, Any]:
        """The manifest of a cache of one hook point that has no shard yet."""
        config, model, text = self.config, self.model, describe_text(self.config.text)
        text |= {"left_out_of_training": self.left_out} if self.left_out else {}
        return new_cache_manifest(
            self.provenance(hook_point, calibration.norm_ceiling, text["content_hash"]),
            seed=config.text.seed,
            config=config.to_json(),
            d_in=self.widths[hook_point],
            dtype=config.cache_dtype,
            gradient_of="sum of next-token losses, in nats" if config.gradients else None,
            tokenizer={
                "of_model": config.model,
                "bos_id": model.bos_id,
                "separator_id": model.separator_id,
                "special_ids": sorted(model.special_ids),
            },
            bos_rule="every context starts with the BOS token where the model has one",
            text=text,
            calibration=asdict(calibration),
            n_tokens_requested=config.n_tokens,
        )


def _plain(counts: Counts) -> dict[str, dict[str, int]]:
    return {source: dict(of_source) for source, of_source in counts.items()}


def rows_beside(batch: CapturedBatch, selections: Mapping[str, RowSelection]) -> dict[str, Rows]:
    """The rows of a batch that are kept at every hook point, by hook point.

    Hook points harvested together have the same rows: one that is excluded at any of them is
    excluded at all, and counted at the others as `norm_at:<hook point>`, since tokens and
    positions are the same everywhere.

    Raises:
        ActivationError: a gradient is NaN or infinite; the message names context and position.
    """
    kept: dict[str, Rows] = {}
    for hook_point, selection in selections.items():
        keep, excluded = selection.keep, dict(selection.excluded)
        for beside in (name for name in selections if name != hook_point):
            kept_beside = selections[beside].keep.to(keep.device)
            excluded[f"norm_at:{beside}"] = int((keep & ~kept_beside).sum())
            keep = keep & kept_beside
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
