"""JumpReLU: each latent has a threshold of its own, learnt through a smoothed jump.

Rajamanoharan et al., 2024, arXiv 2407.14435. With p the pre-activations and θ ≥ 0 the thresholds,
f = p · 1[p > θ] and the loss is ‖x − x̂‖² + λ · L0; or, after Anthropic's January 2025 update,
‖x − x̂‖² + λ Σ tanh(c f). Decoder rows are held at norm one. Saved as `jumprelu`.

Jump and step have gradients through a rectangle kernel around the threshold (their equations 11 and
12). With K(u) = 1 for |u| < ½ and 0 elsewhere, and ε the bandwidth,

    jump   f = p · 1[p > θ]      ∂f/∂p := 1[p > θ]     ∂f/∂θ := −(θ/ε) K((p − θ)/ε)
    step   s = 1[p > θ]          ∂s/∂p := 0            ∂s/∂θ := −(1/ε) K((p − θ)/ε)

Our choices: θ is a parameter itself, not its logarithm, under which Adam hardly moves it, with a
learning rate of its own; pairs with p ≤ 0 take no part, so all pairs that do are those above
max(θ − ε/2, 0); the first batch sets θ, and λ to where a latent alone at that threshold would just
be worth its penalty; from there λ is controlled to reach L0 = k. L0 swings about k for some 200
steps, and a short run ends within a swing: where λ was controlled, all thresholds are at the end
times the one factor that makes the mean L0 k, which moves along the frontier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.config import Within
from saelab.dictionary import Dictionary
from saelab.sparse import select_above

from ..initial import InitialWeights
from ..interface import DictionarySettings, Normalisation, StepOutput, TrainingBatch
from ..options import SparsityOptions
from ..parts.bases import PenalisedMethod, scaled_to_l0

THRESHOLD_QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


@dataclass(frozen=True, kw_only=True)
class JumpReLUOptions(SparsityOptions):
    """Settings of the `jumprelu` method."""

    start_l0_factor: Annotated[float, Within(0.1)] = 2.0
    """L0 of the first batch as a multiple of k: the thresholds are set to it once."""
    penalty: Literal["l0", "tanh"] = "l0"
    """What λ weights: the number of active latents, or the sum of tanh(`tanh_scale` · code)."""
    tanh_scale: Annotated[float, Within(1e-6)] = 1.0
    """c in tanh(c · code), per unit of normalised activations; for `tanh` only."""
    bandwidth: Annotated[float, Within(1e-6)] = 0.5
    """Width ε of the kernel, in units of normalised activations: wider is smoother and slower."""
    threshold_rate: Annotated[float, Within(1e-6)] = 16.0
    """Learning rate of the thresholds, as a multiple of that of the weights."""


class JumpReLU(PenalisedMethod):
    """One JumpReLU dictionary being learnt."""

    needs_calibration = True
    crosses_layers = True

    def __init__(self, settings: DictionarySettings, options: JumpReLUOptions):
        super().__init__(settings, options)
        self.bandwidth, self.rate = options.bandwidth, options.threshold_rate
        self.tanh_scale = options.tanh_scale if options.penalty == "tanh" else None
        # Adam moves all numbers alike: what is stored is θ over its rate.
        self.threshold_over_rate = nn.Parameter(torch.zeros(settings.d_sae))

    @torch.no_grad()
    def take_gate(self, initial: InitialWeights, *, rescaled: bool) -> list[str]:
        """Thresholds are taken over as they are."""
        changes = super().take_gate(initial, rescaled=rescaled)
        if initial.threshold is not None:
            self.threshold_over_rate.copy_(initial.threshold.clamp_min(0.0) / self.rate)
        return changes

    def threshold(self) -> Float[Tensor, " d_sae"]:
        """θ, in units of normalised activations."""
        return self.threshold_over_rate * self.rate

    def losses(self, batch: TrainingBatch) -> StepOutput:
        """Reconstruction over variance, the penalty, and the auxiliary loss."""
        x, w = batch.inputs, self.weights
        if batch.step == 0:
            self._start(x)
        thresholds = self.threshold()
        floor = (thresholds.detach() - self.bandwidth / 2).clamp_min(0.0)
        selected = select_above(self.pre_activations(x), floor)
        pairs = w.pairs_of(selected)
        pre = w.encode(x, selected, pairs, w.b_enc)
        threshold = thresholds[selected.latent]
        value = jump(pre, threshold, self.bandwidth)
        reconstruction = w.decode(selected, value, pairs) + w.baseline(x)
        if self.tanh_scale is None:
            penalty = step(pre, threshold, self.bandwidth).sum()
        else:
            penalty = torch.tanh(self.tanh_scale * value).sum()
        return self.step_output(batch, selected.with_value(value), reconstruction, penalty)

    @torch.no_grad()
    def after_update(self, batch: TrainingBatch, output: StepOutput) -> None:
        """Renormalise the decoder, keep thresholds from below zero; count, and control λ."""
        super().after_update(batch, output)
        self.threshold_over_rate.clamp_min_(0.0)

    @torch.no_grad()
    def _start(self, inputs: Float[Tensor, "rows d_in"]) -> None:
        threshold = self.start_threshold(inputs)
        if not self.thresholds_known:
            with_biases = self.start_threshold(inputs, with_biases=True) / self.rate
            self.threshold_over_rate.copy_(with_biases.expand_as(self.threshold_over_rate))
        # With a the projection on the latent's direction, being active is worth a² to it.
        self.controller.start((threshold / self.encoder_scale).square())

    @torch.no_grad()
    def calibrate(self, rows: Float[Tensor, "rows d_in"]) -> None:
        """Scale the thresholds until the mean L0 of these rows is k, unless λ was given."""
        if self.controller.fixed is None:
            scaled = scaled_to_l0(self.pre_activations(rows), self.threshold(), self.k)
            self.threshold_over_rate.copy_(scaled / self.rate)

    def metrics(self) -> dict[str, float]:
        """Those of the penalty, and quantiles of the thresholds in normalised units."""
        thresholds = self.threshold().detach()
        quantiles = thresholds.new_tensor(list(THRESHOLD_QUANTILES.values()))
        levels = thresholds.quantile(quantiles).tolist()
        names = (f"threshold_{name}" for name in THRESHOLD_QUANTILES)
        return {**super().metrics(), **dict(zip(names, levels, strict=True))}

    @torch.no_grad()
    def to_dictionary(self, normalisation: Normalisation) -> Dictionary:
        """A `jumprelu` dictionary with mean and scale folded in."""
        threshold = self.threshold() / normalisation.code_scale
        return self.weights.to_dictionary("jumprelu", normalisation, threshold=threshold)


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


jump = _Jump.apply
"""(p, threshold, bandwidth), all of pairs → p where it exceeds its threshold, else zero."""
step = _Step.apply
"""(p, threshold, bandwidth) → one where p exceeds its threshold, else zero."""
