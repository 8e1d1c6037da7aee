"""The backward pass of RMS norms in closed form, and how to recognise one.

Autograd goes through Hugging Face's norm as a dozen operations on float32 copies of the residual
stream, and keeps two of them. The closed form, on pieces that stay in a core's cache, takes half
the time and keeps nothing but the input. The forward pass stays the module's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROWS = 256
"""Rows taken at once, so that their float32 copies stay in the cache."""
AGREEMENT = 1e-4
"""Largest relative error per row of a recognised norm's gradient, in float32."""


def rms_norm_gradient(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"],
    epsilon: float,
    gradient: Float[Tensor, "*rows width"],
) -> Float[Tensor, "*rows width"]:
    """Gradient of y = w·x·r, r = (mean(x²) + ε)^−½, with respect to x.

    With t = w·g it is r·t − x·r³·mean(t·x), in float32 or the dtype of x, whichever is finer.

    Args:
        x: input of the norm.
        weight: w, one per entry.
        epsilon: ε.
        gradient: g, of the loss with respect to y.
    """
    width = x.shape[-1]
    fine = torch.promote_types(x.dtype, torch.float32)
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    scale = weight.to(fine)
    for part, wanted, out in zip(
        x.reshape(-1, width).split(ROWS),
        gradient.reshape(-1, width).split(ROWS),
        result.view(-1, width).split(ROWS),
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
        epsilon: what `rms_epsilon` found.
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
    found = rms_norm_gradient(x.detach(), probe.weight.detach(), epsilon, wanted)
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool((error < AGREEMENT).all())
