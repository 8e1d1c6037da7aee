"""The backward pass of causal attention by hand, for a CPU and half precision.

PyTorch's fused attention takes six times as long backward as forward in bfloat16 (SmolLM2-135M,
contexts of 256 tokens); as five batched products it takes half of that. The forward pass stays
PyTorch's, to the bit. At contexts of 1,024 tokens both ways take about the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

DTYPES = (torch.bfloat16, torch.float16)
"""Where the fused backward pass is the slower one; in float32 both take the same time."""
QUERY_ROWS = (128, 256)
"""Queries taken at once, in short contexts and in long ones: of what causal attention leaves out,
half and more need not be computed."""
SCORE_ELEMENTS = 1 << 22
"""Attention scores held at once (8 MB in bfloat16), if one context has no more."""


class AttentionByHand(TorchFunctionMode):
    """Within, causal attention without a mask records `attention_gradients` for its backward pass.

    Every other attention, and that in other dtypes or on other devices, stays as it is.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention_gradients(
    query: Float[Tensor, "batch heads seq d_head"],
    key: Float[Tensor, "batch key_heads seq d_head"],
    value: Float[Tensor, "batch key_heads seq d_value"],
    gradient: Float[Tensor, "batch heads seq d_value"],
    scale: float,
) -> tuple[
    Float[Tensor, "batch heads seq d_head"],
    Float[Tensor, "batch key_heads seq d_head"],
    Float[Tensor, "batch key_heads seq d_value"],
]:
    """Gradients of causal attention with respect to queries, keys and values.

    Probabilities are computed again from queries and keys; sums over blocks of queries are taken
    in float32, or in the tensors' dtype if that is finer.

    Args:
        query: query heads; each key head serves the same number of consecutive ones.
        key: key heads.
        value: value heads.
        gradient: of the loss with respect to the attention's output.
        scale: factor of the scores.
    """
    seq = query.shape[2]
    rows = min(seq, max(QUERY_ROWS[0], min(QUERY_ROWS[1], seq // 4)))
    contexts = max(1, SCORE_ELEMENTS // (query.shape[1] * rows * seq))
    parts = [
        _gradients_at_once(q, k, v, wanted, scale, rows)
        for q, k, v, wanted in zip(
            *(tensor.split(contexts) for tensor in (query, key, value, gradient)), strict=True
        )
    ]
    if len(parts) == 1:
        return parts[0]
    by_query, by_key, by_value = (torch.cat(part) for part in zip(*parts, strict=True))
    return by_query, by_key, by_value


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """`scaled_dot_product_attention`, with its arguments."""
    by_hand = (
        is_causal
        and attn_mask is None
        and dropout_p == 0.0
        and torch.is_grad_enabled()
        and query.device.type == "cpu"
        and query.dtype in DTYPES
        and query.dim() == 4
        and query.shape[2] == key.shape[2]
        and query.shape[1] % key.shape[1] == 0
    )
    if by_hand:
        return _Attention.apply(query, key, value, options)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, **options
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        scale = options.get("scale")
        ctx.scale = query.shape[-1] ** -0.5 if scale is None else scale
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, **options)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        return (*attention_gradients(query, key, value, gradients[0], ctx.scale), None)


def _gradients_at_once(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, scale: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_gradients` of contexts that are taken side by side, `rows` queries at a time."""
    batch, _, seq, _ = query.shape
    # The query heads that share a key head are rows of one product.
    side_by_side = "batch (head group) seq width -> (batch head) (group seq) width"
    apart = "(batch head) (group seq) width -> batch (head group) seq width"
    keys, values = (
        rearrange(x, "batch head seq width -> (batch head) seq width") for x in (key, value)
    )
    fine = torch.promote_types(query.dtype, torch.float32)
    by_query = torch.empty_like(query)
    by_key, by_value = (torch.zeros_like(x, dtype=fine) for x in (keys, values))
    later = query.new_full((rows, rows), -torch.inf).triu_(1)
    for start in range(0, seq, rows):
        end = min(start + rows, seq)
        taken = end - start
        parts = (query[:, :, start:end] * scale, gradient[:, :, start:end])
        queries, wanted = (rearrange(x, side_by_side, head=key.shape[1]) for x in parts)
        scores = torch.bmm(queries, keys[:, :end].transpose(1, 2)).view(-1, taken, end)
        scores[:, :, start:].add_(later[:taken, :taken])
        weights = torch.softmax(scores, dim=-1)
        by_weights = torch.bmm(wanted, values[:, :end].transpose(1, 2)).view_as(weights)
        by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        by_scores = by_scores.view(len(keys), -1, end)
        moved = torch.bmm(by_scores, keys[:, :end]).mul_(scale)
        by_query[:, :, start:end] = rearrange(moved, apart, batch=batch, seq=taken)
        by_key[:, :end] += torch.bmm(by_scores.transpose(1, 2), queries)
        by_value[:, :end] += torch.bmm(weights.view_as(by_scores).transpose(1, 2), wanted)
    return by_query, by_key.to(key.dtype).view_as(key), by_value.to(value.dtype).view_as(value)
