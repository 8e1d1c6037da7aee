"""Backward passes by hand where autograd is slow: causal attention, and RMS norms.

PyTorch's fused attention takes six times as long backward as forward in bfloat16 on a CPU
(SmolLM2-135M, contexts of 256 tokens); as five batched products it takes half of that. At contexts
of 1,024 tokens both ways take about the same time.

Autograd goes through Hugging Face's RMS norm as a dozen operations on float32 copies of the
residual stream, and keeps two of them. The closed form, on pieces that stay in a core's cache,
takes half the time and keeps nothing but the input.

The forward passes stay PyTorch's and the module's, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

DTYPES = (torch.bfloat16, torch.float16)
"""Where the fused backward pass is the slower one; in float32 both take the same time."""
QUERY_ROWS = (128, 256)
"""Queries taken at once, in short contexts and in long ones: of what causal attention leaves out,
half and more need not be computed."""
SCORE_ELEMENTS = 1 << 22
"""Attention scores held at once (8 MB in bfloat16), if one context has no more."""
NORM_ROWS = 256
"""Rows taken at once, so that their float32 copies stay in the cache."""
NORM_AGREEMENT = 1e-4
"""Largest relative error per row of a recognised norm's gradient, in float32."""


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


def rms_norm_gradient(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"],
    epsilon: float,
    gradient: Float[Tensor, "*rows width"],
) -> Float[Tensor, "*rows width"]:
    """Gradient of y = w·x·r, r = (mean(x²) + ε)^−½, with respect to x.

    With t = w·g it is r·t − x·r³·mean(t·x), in float32 or the dtype of x, whichever is finer.

    Args:
        weight: w, one per entry.
        gradient: g, of the loss with respect to y.
    """
    width = x.shape[-1]
    fine = torch.promote_types(x.dtype, torch.float32)
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    scale = weight.to(fine)
    for part, wanted, out in zip(
        x.reshape(-1, width).split(NORM_ROWS),
        gradient.reshape(-1, width).split(NORM_ROWS),
        result.view(-1, width).split(NORM_ROWS),
        strict=True,
    ):
        fine_x, t = part.to(fine), wanted.to(fine) * scale
        length = torch.linalg.vector_norm(fine_x, dim=-1, keepdim=True)
        r = length.square_().div_(width).add_(epsilon).rsqrt_()
        along = (t * fine_x).mean(dim=-1, keepdim=True).mul_(r.pow(3))
        out.copy_(t.mul_(r).addcmul_(fine_x, along, value=-1))
    return result


def rms_epsilon(module: nn.Module) -> float | None:
    """The ε of an RMS norm y = w·x·r; None for any other module.

    The name only says where to look: a copy with random weights must have the closed-form gradient,
    which a norm with gain 1 + w or with its mean taken off has not.
    """
    if not type(module).__name__.endswith("RMSNorm") or "forward" in vars(module):
        return None
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    state = [(name, tensor.dim()) for name, tensor in module.state_dict().items()]
    if not isinstance(epsilon, float) or state != [("weight", 1)]:
        return None
    return epsilon if _has_closed_form(module, epsilon) else None


@contextmanager
def closed_form(module: nn.Module, epsilon: float) -> Iterator[None]:
    """Within, the module records `rms_norm_gradient` for its backward pass.

    Args:
        module: a norm with a frozen weight.
        epsilon: what `rms_epsilon` says.
    """

    def forward(x: Tensor) -> Tensor:
        return _RmsNorm.apply(x, module, epsilon)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, epsilon: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.epsilon = module.weight, epsilon
        return type(module).forward(module, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return rms_norm_gradient(x, ctx.weight, ctx.epsilon, gradients[0]), None, None


def _has_closed_form(module: nn.Module, epsilon: float) -> bool:
    probe: Any = copy.deepcopy(module).to("cpu", torch.float32)
    sample = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    width = int(probe.weight.shape[0])
    probe.weight.data = 1 + sample(width)
    # Some rows are of the size of √ε, where it counts.
    x = sample(4, 3, width) * torch.tensor([epsilon**0.5, 0.1, 1.0, 30.0])[:, None, None]
    wanted = sample(4, 3, width)
    with torch.enable_grad():
        x.requires_grad_(True)
        try:
            (expected,) = torch.autograd.grad(probe(x), x, wanted)
        except (RuntimeError, TypeError):
            return False
    by_hand = rms_norm_gradient(x.detach(), probe.weight.detach(), epsilon, wanted)
    error = (by_hand - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool((error < NORM_AGREEMENT).all())
