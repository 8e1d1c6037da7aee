"""What adding directions at the last position does to the logits: size and consistency.

For a direction d, a strength c and a context: Δ = logits with c · (mean norm) · d added at the last
position, minus the logits without, minus the mean of that over the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.metrics import require_finite

from .suite import SteeringConfig

ACCUMULATED_ENTRIES = 1 << 25
"""Mean changes of logits kept at a time in float64 (256 MB)."""


@dataclass(frozen=True, eq=False)
class Effects:
    """Per strength and direction, what adding the direction did."""

    size: Float[Tensor, "strengths directions"]
    """Mean over contexts of the largest Δ of any token, in logits; float64."""
    consistency: Float[Tensor, "strengths directions"]
    """Mean Δ of the promoted tokens over the contexts that did not choose them; float64."""
    promoted: Int[Tensor, "strengths directions top"]
    """The tokens with the largest mean Δ on the first half of the contexts, largest first."""


def measure_effects(
    model: LanguageModel,
    hook_point: str,
    prompts: Int[Tensor, "contexts seq"],
    directions: Float[Tensor, "directions d_in"],
    mean_norm: float,
    config: SteeringConfig,
    name: str,
) -> Effects:
    """Add every direction at every strength in every context.

    Args:
        hook_point: where directions are added.
        prompts: the contexts; the first half chooses promoted tokens, the rest tests them.
        mean_norm: what strengths multiply, in activation units.
        config: strengths, promoted tokens, and steered copies of a context run at once.
        name: of the directions, for the progress bar.

    Raises:
        ActivationError: logits that are not finite.
    """
    lengths = [strength * mean_norm for strength in config.strengths]
    scale = torch.tensor(lengths, dtype=directions.dtype, device=directions.device)
    at_once = max(1, ACCUMULATED_ENTRIES // (len(lengths) * model.d_vocab))
    parts = []
    total = len(prompts) * len(lengths) * len(directions)
    with progress_bar(total, f"steer {name}", "runs") as bar:
        for part in directions.split(at_once):
            additions = (scale[:, None, None] * part).flatten(0, 1)
            measured = _measure(model, hook_point, prompts, additions, config, bar)
            parts.append([values.unflatten(0, (len(lengths), -1)) for values in measured])
    size, consistency, promoted = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return Effects(size, consistency, promoted)


def _measure(
    model: LanguageModel,
    hook_point: str,
    prompts: Int[Tensor, "contexts seq"],
    additions: Float[Tensor, "variants d_in"],
    config: SteeringConfig,
    bar: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Size, consistency and promoted tokens of each addition."""
    n_contexts, n_variants = len(prompts), len(additions)
    n_choosing, n_top = n_contexts // 2, config.n_top_tokens
    size = torch.zeros(n_variants, dtype=torch.float64, device=model.device)
    mean = size.new_zeros(n_variants, model.d_vocab)
    promoted = torch.zeros(n_variants, n_top, dtype=torch.int64, device=model.device)
    tested = torch.zeros_like(size)
    for index, context in enumerate(prompts):
        if index == n_choosing:
            promoted = mean.topk(n_top, dim=1).indices
        for start in range(0, n_variants, config.batch_variants):
            part = slice(start, start + config.batch_variants)
            change = _change(model, hook_point, context, additions[part])
            size[part] += change.amax(dim=1).double() / n_contexts
            if index < n_choosing:
                mean[part].add_(change, alpha=1 / n_choosing)
            else:
                chosen = change.gather(1, promoted[part]).mean(dim=1, dtype=torch.float64)
                tested[part] += chosen / (n_contexts - n_choosing)
            bar.update(len(change))
    return size, tested, promoted


def _change(
    model: LanguageModel,
    hook_point: str,
    context: Int[Tensor, " seq"],
    additions: Float[Tensor, "variants d_in"],
) -> Float[Tensor, "variants d_vocab"]:
    """Δ of one context, float32."""
    # The untouched model runs as one more row: in the same batch it makes the same rounding errors.
    nothing = torch.zeros_like(additions[:1])
    logits = model.last_logits(context, hook_point, torch.cat([nothing, additions])).float()
    change = logits[1:] - logits[0]
    mean = change.mean(dim=1, keepdim=True, dtype=torch.float64)
    # A mean is finite only where every logit is; looking at each would take as long as the mean.
    require_finite(mean, "the mean change of the steered model's logits")
    return change.sub_(mean.float())
