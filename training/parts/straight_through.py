"""Gates on a vector of pairs whose jump has a gradient: a rectangle kernel around the threshold.

Rajamanoharan et al., 2024, arXiv 2407.14435, equations 11 and 12. With p the pre-activation of a
pair, θ its latent's threshold, K(u) = 1 for |u| < ½ and 0 elsewhere, and ε the bandwidth,

    jump   f = p · 1[p > θ]      ∂f/∂p := 1[p > θ]     ∂f/∂θ := −(θ/ε) K((p − θ)/ε)
    step   s = 1[p > θ]          ∂s/∂p := 0            ∂s/∂θ := −(1/ε) K((p − θ)/ε)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def jump(
    pre_activations: Float[Tensor, " pairs"], threshold: Float[Tensor, " pairs"], bandwidth: float
) -> Float[Tensor, " pairs"]:
    """The pre-activations that exceed their thresholds, zero elsewhere.

    Args:
        pre_activations: of each pair.
        threshold: of each pair's latent.
        bandwidth: width of the kernel, in the same units.
    """
    return _Jump.apply(pre_activations, threshold, bandwidth)


def step(
    pre_activations: Float[Tensor, " pairs"], threshold: Float[Tensor, " pairs"], bandwidth: float
) -> Float[Tensor, " pairs"]:
    """One for each pre-activation that exceeds its threshold, zero elsewhere.

    Args:
        pre_activations: of each pair.
        threshold: of each pair's latent.
        bandwidth: width of the kernel, in the same units.
    """
    return _Step.apply(pre_activations, threshold, bandwidth)


def _kernel(p: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """K((p − θ)/ε) / ε."""
    return ((p - threshold).abs() < bandwidth / 2).to(p.dtype) / bandwidth


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(p, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(p > threshold, p, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        p, threshold = ctx.saved_tensors
        through = torch.where(p > threshold, gradient, 0.0)
        return through, -threshold * _kernel(p, threshold, ctx.bandwidth) * gradient, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(p, threshold)
        ctx.bandwidth = bandwidth
        return (p > threshold).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        p, threshold = ctx.saved_tensors
        return None, -_kernel(p, threshold, ctx.bandwidth) * gradient, None
