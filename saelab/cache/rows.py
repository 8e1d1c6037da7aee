"""Applying the token filter to activations, alike in training and in every metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from saelab.errors import ActivationError
from saelab.model.language_model import LanguageModel
from saelab.text.contexts import TextBatch
from saelab.text.tokens import OTHER_ROLE, PADDING

from .config import TokenFilter

GAP = math.log(4)
"""Between log-norms that lie this far apart, with none in between, the bulk has ended."""


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """Which positions are rows, and why the others are not."""

    keep: Bool[Tensor, "batch seq"]
    """True where a position is a row."""
    excluded: dict[str, int]
    """Positions excluded, by the first reason that applies: padding, bos, separator, role,
    position, norm. Padding and role are named where the text has such positions."""
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
    left_out: UInt8[Tensor, "batch seq"] | None = None,
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
        left_out: what the text leaves out, as in `TextBatch`; None: nothing.

    Raises:
        ActivationError: an activation is NaN or infinite.
    """
    tokens = tokens.to(activations.device)
    norms = torch.linalg.vector_norm(
        activations, dim=-1, dtype=torch.promote_types(activations.dtype, torch.float32)
    )
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
    states = None if left_out is None else left_out.to(tokens.device)
    reasons = {
        **({} if states is None else {"padding": states == PADDING}),
        "bos": is_bos if rule.exclude_bos else None,
        "separator": is_separator if rule.exclude_separators else None,
        **({} if states is None else {"role": states == OTHER_ROLE}),
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


def find_norm_ceiling(
    rule: TokenFilter, norms: Float[Tensor, " rows"], hook_point: str
) -> float | None:
    """The norm above which rows are excluded, by a sample of the rows that the rule's other parts
    keep; None: no norm is too large.

    Raises:
        ActivationError: the sample is empty, or half of it is zero.
    """
    if rule.max_norm_ratio is None:
        return None
    if len(norms) == 0:
        raise ActivationError("the token filter excludes every row of the sample: relax rows.*")
    ordered = norms.double().sort().values
    median = float(ordered[(len(ordered) - 1) // 2])
    if median == 0:
        raise ActivationError(
            f"at least half of the rows of {hook_point} are zero, so the median norm is no "
            "measure of the others: give --rows.max-norm-ratio None"
        )
    if rule.max_norm_ratio == "bulk":
        return median * math.exp(_beyond_bulk((ordered / median).log()))
    return median * rule.max_norm_ratio


def _beyond_bulk(logs: Float[Tensor, " rows"]) -> float:
    """Ceiling of ascending log-norms whose median is 0, well above where their bulk ends.

    Massive norms are so rare that the sample may hold none, and those that it holds need not leave
    a gap, so the ceiling follows from the bulk: three times as far above the median as its 99 %
    quantile, seven standard deviations of a Gaussian, but at most a factor of `GAP` above the
    quantile, where a broad bulk would hide massive rows. Norms below twice the median never are.
    Should massive rows be so many that they reach the quantile, the first gap of that factor above
    the 90 % quantile ends the bulk, and the ceiling lies no higher than the middle of the gap.
    """
    start, middle = int(0.9 * (len(logs) - 1)), math.inf
    gaps = (logs[start:].diff() > GAP).nonzero()
    if len(gaps):
        end = start + int(gaps[0]) + 1
        logs, middle = logs[:end], float(logs[end - 1] + logs[end]) / 2
    quantile = float(logs[math.ceil(0.99 * (len(logs) - 1))])
    return min(middle, max(quantile + min(2 * quantile, GAP), math.log(2)))


def capture_with_gradients(
    model: LanguageModel, batch: TextBatch, hook_points: Sequence[str]
) -> dict[str, tuple[Float[Tensor, "batch seq _"], Float[Tensor, "batch seq _"]]]:
    """Activations and gradients of some contexts; the loss is of their text, not of their padding.

    Contexts of one length are run together without their padding, where both are zero.
    """
    lengths = batch.lengths()
    if bool((lengths == batch.tokens.shape[1]).all()):
        return model.capture_with_gradients(batch.tokens, hook_points)
    whole: dict[str, tuple[Tensor, Tensor]] = {}
    for length in lengths.unique().tolist():
        chosen = (lengths == length).nonzero().flatten()
        tokens = batch.tokens[chosen, :length]
        if length > 1:
            captured = model.capture_with_gradients(tokens, hook_points)
        else:
            # Nothing is predicted.
            alone = model.capture(tokens, hook_points)
            captured = {name: (part, torch.zeros_like(part)) for name, part in alone.items()}
        for name, parts in captured.items():
            if name not in whole:
                shape = (*batch.tokens.shape, parts[0].shape[-1])
                whole[name] = (parts[0].new_zeros(shape), parts[1].new_zeros(shape))
            for everywhere, part in zip(whole[name], parts, strict=True):
                everywhere[chosen.to(part.device), :length] = part
    return whole


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


def excluded_in_words(excluded: Mapping[str, int]) -> str:
    """Counts by reason; those of many other hook points together."""
    elsewhere = [count for reason, count in excluded.items() if reason.startswith("norm_at:")]
    words = [f"{n:,} {reason}" for reason, n in excluded.items() if "norm_at:" not in reason]
    if known := [count for count in elsewhere if count]:
        words.append(f"up to {max(known):,} norm at each of {len(known)} other hook points")
    return ", ".join(words)
