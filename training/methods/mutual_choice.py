"""Mutual Choice: the k·B largest pre-activations of a whole batch, wherever they are.

Ayonrinde, 2024, arXiv 2411.02124. With rectified pre-activations this is the selection of BatchTopK
(Bussmann et al., 2024, arXiv 2412.06410); the two names differ in the default auxiliary loss, which
is aux-Zipf here and AuxK there. Losses and decoder norms are those of TopK.

A batch's selection depends on the other tokens in it, so what is saved is a `jumprelu` dictionary
with one threshold for all latents, fitted after training so that the mean L0 is k; a running mean
of the batches' thresholds is logged beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import Within
from saelab.dictionary import Dictionary
from saelab.errors import ConfigError
from saelab.sparse import SparseCodes, select_batch_top

from ..interface import DictionarySettings, Normalisation, StepOutput, TrainingBatch
from ..options import AuxiliaryOptions, CommonOptions
from ..parts.bases import AutoencoderMethod

NEVER = -1.0
"""A threshold that was never fitted: real ones are not negative."""


@dataclass(frozen=True, kw_only=True)
class MutualChoiceOptions(CommonOptions):
    """Settings of `mutual_choice` and `batch_topk`."""

    auxiliary: AuxiliaryOptions = field(
        default_factory=lambda: AuxiliaryOptions(kind="zipf", k_aux=32, every_rows=2)
    )
    """The auxiliary loss that keeps latents in use."""
    encoder_scale: Annotated[float, Within(1e-6)] = 0.5
    """Norm of each latent's encoder weights at the start; 1 would tie them to the decoder's."""
    threshold_decay: Annotated[float, Within(0, 1)] = 0.99
    """Decay, per step, of the running mean of the batches' thresholds, which is only logged."""


class MutualChoice(AutoencoderMethod):
    """One dictionary being learnt by selection over the batch."""

    needs_calibration = True
    crosses_layers = True

    floor: Float[Tensor, ""]
    running_threshold: Float[Tensor, ""]
    running_weight: Float[Tensor, ""]
    threshold: Float[Tensor, ""]

    def __init__(self, settings: DictionarySettings, options: MutualChoiceOptions):
        super().__init__(settings, options, options.encoder_scale)
        self.decay = options.threshold_decay
        # Where the next search starts.
        self.register_buffer("floor", torch.tensor(NEVER))
        self.register_buffer("running_threshold", torch.zeros(()))
        self.register_buffer("running_weight", torch.zeros(()))
        self.register_buffer("threshold", torch.tensor(NEVER))

    def losses(self, batch: TrainingBatch) -> StepOutput:
        """Reconstruction over variance, and the auxiliary loss."""
        return self.reconstruct(batch, self.select(batch))

    @torch.no_grad()
    def select(self, batch: TrainingBatch) -> SparseCodes:
        """The k·B largest positive pre-activations of the batch."""
        top = select_batch_top(
            self.pre_activations(batch.inputs),
            self.k * batch.inputs.shape[0],
            None if batch.step == 0 else self.floor,
        )
        self.floor.copy_(top.next_floor)
        self.running_threshold.mul_(self.decay).add_(top.threshold, alpha=1 - self.decay)
        self.running_weight.mul_(self.decay).add_(1 - self.decay)
        return top.codes

    @torch.no_grad()
    def calibrate(self, rows: Float[Tensor, "rows d_in"]) -> None:
        """Fit the threshold at which the mean L0 of these rows is k."""
        top = select_batch_top(self.pre_activations(rows), self.k * rows.shape[0])
        # A gate keeps what is above its threshold, so the smallest chosen pair of all is left out.
        self.threshold.copy_(top.threshold)

    def to_dictionary(self, normalisation: Normalisation) -> Dictionary:
        """A `jumprelu` dictionary with what `calibrate` fitted.

        Raises:
            ConfigError: the threshold was never fitted.
        """
        fitted = self.fitted_threshold()
        if bool((fitted < 0).any()):
            raise ConfigError(
                "the threshold was never calibrated: call `calibrate` with rows after training"
            )
        threshold = (fitted / normalisation.code_scale).expand_as(self.weights.b_enc).clone()
        return self.weights.to_dictionary("jumprelu", normalisation, threshold=threshold)

    def fitted_threshold(self) -> Float[Tensor, "*latents"]:
        """What `calibrate` fitted, in normalised units: one number, or one per latent."""
        return self.threshold

    def metrics(self) -> dict[str, float]:
        """Shares of dead and underused latents, and the threshold, in normalised units."""
        running = float(self.running_threshold / self.running_weight.clamp_min(1e-30))
        return super().metrics() | {"threshold_running_mean": running}
