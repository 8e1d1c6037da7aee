"""Applying the token filter to activations, alike in training and in every metric."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ActivationError

from .config import TokenFilter


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """Which positions are rows, and why the others are not."""

    keep: Bool[Tensor, "batch seq"]
    """True where a position is a row."""
    excluded: dict[str, int]
    """Positions excluded, by the first reason that applies: bos, separator, position, norm."""
    norms: Float[Tensor, "batch seq"]
    """Euclidean norm of every position, float32."""


def select_rows(
    rule: TokenFilter,
    tokens: Int[Tensor, "batch seq"],
    activations: Float[Tensor, "batch seq d_in"],
    *,
    special_ids: Set[int],
    bos_id: int | None,
    norm_ceiling: float | None,
    first_context: int = 0,
) -> RowSelection:
    """Decide which positions of some contexts are rows.

    Args:
        rule: the rule.
        tokens: token ids of the contexts.
        activations: what a hook point holds at each position.
        special_ids: all special tokens of the tokenizer.
        bos_id: the BOS token, where there is one. A model whose separator is its BOS token has
            those counted as "bos"; with `exclude_bos` off, one that is not first is a separator.
        norm_ceiling: rows with a larger norm are excluded; None excludes none.
        first_context: index of the first context in the text, for messages.

    Raises:
        ActivationError: an activation is NaN or infinite.
    """
    tokens = tokens.to(activations.device)
    norms = torch.linalg.vector_norm(activations, dim=-1, dtype=torch.float32)
    _require_finite(activations, norms, first_context)
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[:, 0] = True
    is_bos = first if bos_id is None else first | (tokens == bos_id)
    special = torch.tensor(sorted(special_ids), dtype=tokens.dtype, device=tokens.device)
    is_separator = torch.isin(tokens, special)
    if bos_id is not None:
        is_separator &= ~(first & (tokens == bos_id))
    at_position = torch.zeros_like(first)
    for position in rule.exclude_positions:
        at_position[:, position : position + 1] = True
    reasons = {
        "bos": is_bos if rule.exclude_bos else None,
        "separator": is_separator if rule.exclude_separators else None,
        "position": at_position if rule.exclude_positions else None,
        "norm": norms > norm_ceiling if norm_ceiling is not None else None,
    }
    keep = torch.ones_like(first)
    excluded: dict[str, int] = {}
    for reason, applies in reasons.items():
        excluded[reason] = 0 if applies is None else int((keep & applies).sum())
        if applies is not None:
            keep &= ~applies
    return RowSelection(keep=keep, excluded=excluded, norms=norms)


def _require_finite(
    activations: Float[Tensor, "batch seq d_in"],
    norms: Float[Tensor, "batch seq"],
    first_context: int,
) -> None:
    """Raise where an activation is not finite; norms that are finite prove that all are."""
    if bool(norms.sum().isfinite()):
        return
    bad = (~activations.isfinite().all(dim=-1)).nonzero()
    if len(bad):
        context, position = bad[0].tolist()
        raise ActivationError(
            f"activations of context {first_context + context} at position {position} hold a NaN "
            "or an infinity: compute the model in float32 or bfloat16, or check the model"
        )
