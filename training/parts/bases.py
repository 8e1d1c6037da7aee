"""What methods share: unit-norm decoder rows under a selection, or a weighted sparsity penalty.

Penalised methods minimise ‖x − x̂‖² + λ · penalty, summed over a token and divided by d_out, on
activations of unit variance per dimension: λ is what one unit of the penalty costs in squared
error. The first batch sets thresholds (or biases) so that L0 begins at `start_l0_factor` · k.
Without that half of all pre-activations are positive, and every sparse product over them is a dense
one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.dictionary import Dictionary
from saelab.dictionary.architectures import error_of
from saelab.sparse import (
    PreActivations,
    SparseCodes,
    select_above,
    select_batch_top,
)
from saelab.sparse.world import current_world

from ..initial import InitialWeights
from ..interface import DictionarySettings, Method, Normalisation, StepOutput, TrainingBatch
from ..options import CommonOptions, SparsityOptions
from .auxiliary import Auxiliary
from .cross_layer import CrossLayerWeights
from .weights import AutoencoderWeights, make_tangent, normalise_rows, row_norms, turn_back

GAIN = 0.25
"""P: log λ rises by this much per unit of e."""
INTEGRAL_FRACTION = 0.07
"""I as a share of the run's steps, within `INTEGRAL_STEPS`."""
INTEGRAL_STEPS = (5.0, 400.0)
AVERAGED_FRACTION = 0.01
"""Steps over which e is averaged, as a share of the run's; one step at the least."""
MOST_AVERAGED_STEPS = 50.0
APPROACH_FRACTION = 0.1
"""Share of the run over which log target goes from where training starts to log k."""
LOG_RANGE = 16.0
"""λ stays within e^±16 of its start, so that a target out of reach cannot make it infinite."""


class AutoencoderMethod(Method):
    """A dictionary being learnt, by whatever selection, with encoder and decoder apart.

    What is selected is rectified and decoded; the loss is the squared error over the data's
    variance (one, after normalisation) plus the auxiliary loss.
    """

    unit_norm: ClassVar[bool] = True
    """Whether the decoder's rows are held at norm one."""
    lift_bias: ClassVar[bool] = False
    """Whether the auxiliary loss counts encoder biases as zero; see `Auxiliary`."""
    start: Float[Tensor, "d_sae d_out"] | None
    """Where the decoder started, if it is held near that."""

    def __init__(self, settings: DictionarySettings, options: CommonOptions, encoder_scale: float):
        super().__init__()
        self.k = min(settings.k, settings.d_sae)
        self.product_dtype = settings.product_dtype
        self.encoder_scale = encoder_scale
        self.weights = weights_of(settings, encoder_scale)
        self.summed_over = settings.written_widths if options.decoder_norm == "summed" else ()
        if self.summed_over:
            normalise_rows(self.weights.W_dec, self.summed_over)
        # Without a gradient the optimizer leaves it alone, byte for byte.
        self.weights.W_dec.requires_grad_(options.decoder != "frozen")
        self.least_cosine = options.decoder_cosine
        soft = options.decoder == "soft-frozen"
        self.register_buffer("start", self.weights.W_dec.detach().clone() if soft else None)
        self.auxiliary = Auxiliary(
            settings.d_sae,
            settings.k,
            options.auxiliary,
            settings.product_dtype,
            lift_bias=self.lift_bias,
        )

    @torch.no_grad()
    def begin_from(self, source: Dictionary, normalisation: Normalisation) -> list[str]:
        """Take over the weights; decoder rows are brought to norm one where they are held there."""
        w = self.weights
        initial = InitialWeights.of(
            source, normalisation, autoencodes=w.b_in is None, skip=w.W_skip is not None
        )
        rescaled = False
        if self.unit_norm:
            norms = row_norms(initial.W_dec, self.summed_over)
            initial, rescaled = initial.with_unit_decoder(norms)
        w.begin_from(initial)
        if self.start is not None:
            self.start.copy_(w.W_dec)
        return self.take_gate(initial, rescaled=rescaled)

    def take_gate(self, initial: InitialWeights, *, rescaled: bool) -> list[str]:
        """Take over what decides which latents fire; returns what cannot be, in words.

        Args:
            initial: what is begun from; the weights are taken over already.
            rescaled: its decoder rows were not of norm one.
        """
        changes = []
        if initial.threshold is not None:
            changes.append(
                f"its thresholds play no part: the largest pre-activations, {self.k} of "
                "each row on average, are taken"
            )
        elif initial.k != self.k:
            changes.append(f"k is {self.k}, not its {initial.k}")
        if rescaled:
            changes.append(
                "its decoder rows were brought to norm one and codes scaled by their norms, which "
                "changes what is largest"
            )
        return changes

    def pre_activations(self, inputs: Float[Tensor, "batch d_in"]) -> PreActivations:
        """The pre-activations of normalised inputs, to select from."""
        return self.weights.pre_activations(inputs, self.product_dtype, self.weights.b_enc)

    def reconstruct(self, batch: TrainingBatch, selected: SparseCodes) -> StepOutput:
        """Losses of already selected pairs: reconstruction, and auxiliary where it is wanted."""
        codes, reconstruction = self.autoencode(batch, selected)
        error = error_of(batch.targets, reconstruction)
        losses = {"reconstruction": error.square().mean()}
        losses |= self.auxiliary.loss(self.weights, batch.inputs, error)
        return StepOutput(losses, codes, reconstruction)

    def autoencode(
        self, batch: TrainingBatch, selected: SparseCodes
    ) -> tuple[SparseCodes, Float[Tensor, "batch d_out"]]:
        """The codes of already selected pairs and the reconstruction of the targets."""
        w, x = self.weights, batch.inputs
        pairs = w.pairs_of(selected)
        value = w.encode(x, selected, pairs, w.b_enc).relu()
        return selected.with_value(value), w.decode(selected, value, pairs) + w.baseline(x)

    @torch.no_grad()
    def adjust_gradients(self) -> None:
        """Keep the decoder's gradient tangent to the unit sphere."""
        gradient = self.weights.W_dec.grad
        if self.unit_norm and gradient is not None:
            for part, rows in self._by_latent(gradient, self.weights.W_dec):
                make_tangent(part, rows, self.summed_over)

    @torch.no_grad()
    def after_update(self, batch: TrainingBatch, output: StepOutput) -> None:
        """Hold the decoder near its start, renormalise it, and count who fired."""
        W_dec = self.weights.W_dec
        if self.start is not None:
            for rows, start in self._by_latent(W_dec, self.start):
                turn_back(rows, start, self.least_cosine)
        if self.unit_norm and W_dec.requires_grad:
            for (rows,) in self._by_latent(W_dec):
                normalise_rows(rows, self.summed_over)
        self.auxiliary.update(output.codes, step=batch.step)

    def _by_latent(self, *decoders: Tensor) -> Iterator[tuple[Tensor, ...]]:
        return zip(*map(self.weights.by_latent, decoders), strict=True)

    def decoder_norms(self) -> Float[Tensor, " d_sae"]:
        """Norm of each latent's decoder row."""
        return row_norms(self.weights.W_dec, self.summed_over)

    def metrics(self) -> dict[str, float]:
        """Shares of latents that are dead or underused."""
        return self.auxiliary.metrics()


def weights_of(settings: DictionarySettings, encoder_scale: float) -> AutoencoderWeights:
    """The weights at their start, drawn from the seed."""
    d_in, d_sae, n_layers = settings.d_in, settings.d_sae, settings.n_layers
    drawn: dict[str, Any] = {"seed": settings.seed, "encoder_scale": encoder_scale}
    if n_layers is None:
        return AutoencoderWeights(d_in, d_sae, d_out=settings.d_out, skip=settings.skip, **drawn)
    return CrossLayerWeights(d_in // n_layers, d_sae, n_layers, **drawn)


class PenalisedMethod(AutoencoderMethod):
    """A dictionary being learnt under a sparsity penalty."""

    def __init__(self, settings: DictionarySettings, options: SparsityOptions):
        super().__init__(settings, options, options.encoder_scale)
        self.start_l0 = options.start_l0_factor * settings.k
        self.thresholds_known = False
        self.controller = SparsityController(
            settings.k,
            settings.n_steps,
            fixed=options.sparsity_weight,
            start_l0_factor=options.start_l0_factor,
        )

    def take_gate(self, initial: InitialWeights, *, rescaled: bool) -> list[str]:
        """Hold L0 at k from the start; the first batch gives thresholds where there are none."""
        del rescaled  # thresholds and biases were scaled too, so the same latents fire
        self.thresholds_known, self.start_l0 = initial.threshold is not None, self.k
        self.encoder_scale = float(torch.linalg.vector_norm(self.weights.W_enc, dim=0).mean())
        self.controller.skip_approach()
        if self.thresholds_known:
            return []
        return [f"it has no thresholds: they start where the first batch's L0 is {self.k}"]

    @torch.no_grad()
    def start_threshold(
        self, inputs: Float[Tensor, "rows d_in"], *, with_biases: bool = False
    ) -> Float[Tensor, ""]:
        """The pre-activation, without bias unless asked for, above which these rows have the L0 to
        start with."""
        pre = self.pre_activations(inputs)
        if not with_biases:
            pre = replace(pre, b_enc=torch.zeros_like(self.weights.b_enc))
        return select_batch_top(pre, max(1, round(self.start_l0 * inputs.shape[0]))).threshold

    @torch.no_grad()
    def start_biases(self, inputs: Float[Tensor, "rows d_in"]) -> None:
        """Set b_enc to start with, and λ, for a penalty that is the sum of the codes."""
        threshold = self.start_threshold(inputs)
        if not self.thresholds_known:
            self.weights.b_enc.sub_(self.start_threshold(inputs, with_biases=True))
        # (a − f)² + λ f is least at f = a − λ/2, with a the projection on the latent's direction.
        self.controller.start(2 * threshold / self.encoder_scale)

    def step_output(
        self,
        batch: TrainingBatch,
        codes: SparseCodes,
        reconstruction: Float[Tensor, "batch d_out"],
        penalty: Float[Tensor, ""],
        **more: Float[Tensor, ""],
    ) -> StepOutput:
        """Reconstruction over variance, the weighted penalty, `more` losses, and the auxiliary."""
        error = error_of(batch.targets, reconstruction)
        losses = {
            "reconstruction": error.square().mean(),
            "sparsity": self.controller.weight() * penalty / batch.targets.numel(),
            **more,
        }
        losses |= self.auxiliary.loss(self.weights, batch.inputs, error)
        return StepOutput(losses, codes.with_value(codes.value.detach()), reconstruction)

    @torch.no_grad()
    def after_update(self, batch: TrainingBatch, output: StepOutput) -> None:
        """Renormalise the decoder, count who fired, and tell the controller."""
        super().after_update(batch, output)
        self.controller.update(output.codes)

    def metrics(self) -> dict[str, float]:
        """The sparsity weight, and shares of latents that are dead or underused."""
        return {"sparsity_weight": float(self.controller.weight()), **super().metrics()}


@torch.no_grad()
def scaled_to_l0(
    pre: PreActivations, thresholds: Float[Tensor, " d_sae"], k: int
) -> Float[Tensor, " d_sae"]:
    """The thresholds times the one factor at which the mean L0 of these rows is k."""
    world, factor = current_world(), 0.5
    wanted = k * pre.shape[0] * world.size
    while True:
        codes = select_above(pre, thresholds * factor)
        codes = codes.keep(codes.value > 0)
        ratio = codes.value / thresholds[codes.latent].clamp_min(1e-12)
        ratios = torch.cat(world.gather(ratio))
        if len(ratios) >= wanted or factor < 1e-3:
            break
        factor /= 2
    count = min(wanted, len(ratios))
    return thresholds * (ratios.topk(count).values[-1] if count else 1.0)


class SparsityController(nn.Module):
    """The weight λ of a sparsity penalty: held, or controlled so that L0 reaches its target.

    The controller is proportional-integral in log λ on e = log(L0 / k), from the L0 of every batch:

        log λ ← log λ + P (ē − ē_before) + ē / I

    with ē the running mean of e, each e limited to ±1, and I in steps. Logarithms make it
    indifferent to the scale of the penalty. Where training starts away from k, the target goes from
    there to k over the first part of the run, and so little is left for the integral to wind itself
    up on. P, I and the running mean were chosen for runs from 150 steps on. All state is in buffers
    and none of it is read back, so a step never waits for the device and a resumed run goes on
    exactly.

    Args:
        target_l0: wanted mean number of active latents per token.
        start_l0_factor: L0 of the first batch over the target.
        fixed: the weight of every step; None: controlled.
    """

    log_weight: Float[Tensor, ""]
    start_log_weight: Float[Tensor, ""]
    mean_error: Float[Tensor, ""]
    updates: Float[Tensor, ""]

    def __init__(
        self, target_l0: int, n_steps: int, fixed: float | None, *, start_l0_factor: float = 1.0
    ):
        super().__init__()
        self.target_l0, self.fixed = target_l0, fixed
        self.start_log_target = math.log(start_l0_factor)
        self.approach_steps = max(1.0, APPROACH_FRACTION * n_steps)
        low, high = INTEGRAL_STEPS
        self.integral_steps = min(max(low, INTEGRAL_FRACTION * n_steps), high)
        averaged = min(max(1.0, AVERAGED_FRACTION * n_steps), MOST_AVERAGED_STEPS)
        self.newest_share = 1 / averaged
        for name in ("log_weight", "start_log_weight", "mean_error", "updates"):
            self.register_buffer(name, torch.zeros(()))

    def start(self, weight: Float[Tensor, ""]) -> None:
        """Begin at this weight where it is controlled."""
        self.log_weight.copy_(weight.clamp_min(1e-6).log())
        self.start_log_weight.copy_(self.log_weight)

    def skip_approach(self) -> None:
        """Hold the target at `target_l0` from the first step on."""
        self.updates.fill_(self.approach_steps)

    def weight(self) -> Float[Tensor, ""]:
        """λ of the next step."""
        if self.fixed is not None:
            return torch.full_like(self.log_weight, self.fixed)
        return self.log_weight.exp()

    @torch.no_grad()
    def update(self, codes: SparseCodes) -> None:
        """Learn the L0 that the last weight has led to; the zeros among the codes do not count."""
        if self.fixed is not None:
            return
        l0 = current_world().mean((codes.value > 0).sum() / max(1, codes.n_rows))
        still_to_go = (1 - self.updates / self.approach_steps).clamp_min(0.0)
        log_target = math.log(self.target_l0) + self.start_log_target * still_to_go
        error = (l0.clamp_min(1e-6).log() - log_target).clamp(-1.0, 1.0)
        before = torch.where(self.updates > 0, self.mean_error, error)
        self.mean_error.copy_(before.lerp(error, self.newest_share))
        self.updates += 1
        change = GAIN * (self.mean_error - before) + self.mean_error / self.integral_steps
        low, high = self.start_log_weight - LOG_RANGE, self.start_log_weight + LOG_RANGE
        self.log_weight.copy_((self.log_weight + change).clamp(low, high))
