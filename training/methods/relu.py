"""ReLU with an L1 penalty, in the form of Anthropic's April 2024 update.

Conerly et al., 2024, https://transformer-circuits.pub/2024/april-update. With p the pre-activations
and f = relu(p), the loss is ‖x − x̂‖² + λ Σ f_i ‖W_dec_i‖: decoder rows are free, and making them
longer and codes shorter gains nothing. At save the norms move into the encoder, so the saved `relu`
dictionary has decoder rows of norm one and the codes f_i ‖W_dec_i‖.

Our choices: the first batch sets b_enc, and λ to where a latent alone at that threshold would just
be worth its penalty; from there λ is controlled to reach L0 = k. Selection is every p > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from saelab.config import Within
from saelab.dictionary import Dictionary
from saelab.sparse import TransposedPairs, decode_selected, encode_selected, select_above

from ..initial import InitialWeights
from ..interface import Normalisation, StepOutput, TrainingBatch
from ..options import SparsityOptions
from ..parts.bases import PenalisedMethod

SMALLEST_NORM = 1e-12


@dataclass(frozen=True, kw_only=True)
class ReLUOptions(SparsityOptions):
    """Settings of the `relu` method."""

    learning_rate: Annotated[float | None, Within(0, low_open=True)] = 5e-3
    """Peak learning rate of this method. None: the run's."""
    encoder_scale: Annotated[float, Within(1e-6)] = 1.0
    """Norm of each latent's encoder weights at the start; 1 ties them to the decoder's."""


class ReLU(PenalisedMethod):
    """One ReLU dictionary being learnt."""

    unit_norm = False
    lift_bias = True

    @torch.no_grad()
    def take_gate(self, initial: InitialWeights, *, rescaled: bool) -> list[str]:
        """Biases are lowered by what thresholds there are."""
        changes = super().take_gate(initial, rescaled=rescaled)
        if initial.threshold is not None and bool((initial.threshold > 0).any()):
            self.weights.b_enc.sub_(initial.threshold.clamp_min(0.0))
            changes.append(
                "its thresholds are taken off the biases: the same latents fire, with codes that "
                "are less by them"
            )
        return changes

    def losses(self, batch: TrainingBatch) -> StepOutput:
        """Reconstruction over variance, the L1 penalty of the codes, and the auxiliary loss."""
        x, w = batch.inputs, self.weights
        if batch.step == 0:
            self.start_biases(x)
        selected = select_above(self.pre_activations(x), torch.zeros_like(w.b_enc))
        pairs = TransposedPairs.of(selected)
        value = encode_selected(x, w.W_enc, w.b_enc, w.input_bias, selected, pairs).relu()
        reconstruction = decode_selected(selected, value, w.W_dec, pairs) + w.baseline(x)
        # What the codes are once the decoder's norms are folded in.
        codes = selected.with_value(value * self.decoder_norms()[selected.latent])
        return self.step_output(batch, codes, reconstruction, codes.value.sum())

    @torch.no_grad()
    def to_dictionary(self, normalisation: Normalisation) -> Dictionary:
        """A `relu` dictionary with mean, scale and the decoder's norms folded in."""
        folded, norms = self.weights.fold(normalisation), self.decoder_norms()
        return Dictionary(
            "relu",
            **folded
            | {
                "W_enc": folded["W_enc"] * norms,
                "b_enc": folded["b_enc"] * norms,
                "W_dec": folded["W_dec"] / norms.clamp_min(SMALLEST_NORM).unsqueeze(1),
            },
        )
