"""Gated: one encoder decides which latents are active, its rescaled copy how strongly.

Rajamanoharan et al., 2024, arXiv 2404.16014, section 3. With c = x − b_dec,

    g = c W_enc + b_gate        m = c (W_enc · exp(r_mag)) + b_mag        f = 1[g > 0] relu(m)
    loss = ‖x − x̂(f)‖² + λ Σ relu(g) + ‖x − x̂_frozen(relu(g))‖²

where x̂_frozen decodes with W_dec and b_dec held constant: the penalty shrinks only the gate's
activations, and the third term is what trains the gate. Decoder rows are held at norm one, as in
the paper. Saved as `gated`.

Our choices: the first batch sets b_gate, and λ to where a latent alone at that threshold would just
be worth its penalty; from there λ is controlled to reach L0 = k. Only pairs with g > 0 take part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.config import Within
from saelab.dictionary import Dictionary
from saelab.dictionary.architectures import error_of
from saelab.sparse import TransposedPairs, decode_selected, encode_selected, select_above

from ..initial import InitialWeights
from ..interface import DictionarySettings, Normalisation, StepOutput, TrainingBatch
from ..options import SparsityOptions
from ..parts.bases import PenalisedMethod


@dataclass(frozen=True, kw_only=True)
class GatedOptions(SparsityOptions):
    """Settings of the `gated` method."""

    learning_rate: Annotated[float | None, Within(0, low_open=True)] = 5e-3
    """Peak learning rate of this method. None: the run's."""


class Gated(PenalisedMethod):
    """One gated dictionary being learnt; the encoder bias of its weights is b_gate."""

    lift_bias = True

    silent_share: Float[Tensor, ""]

    def __init__(self, settings: DictionarySettings, options: GatedOptions):
        super().__init__(settings, options)
        self.r_mag = nn.Parameter(torch.zeros(settings.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(settings.d_sae))
        self.register_buffer("silent_share", torch.zeros(()))

    @torch.no_grad()
    def take_gate(self, initial: InitialWeights, *, rescaled: bool) -> list[str]:
        """The gate opens where the magnitude exceeds the threshold."""
        changes, w = super().take_gate(initial, rescaled=rescaled), self.weights
        self.r_mag.copy_(initial.r_mag)
        self.b_mag.copy_(initial.b_enc)
        threshold = 0.0 if initial.threshold is None else initial.threshold
        w.b_enc.copy_((initial.b_enc - threshold) / initial.r_mag.exp())
        w.encoder_rows.copy_((initial.W_enc / initial.r_mag.exp()).T)
        return changes

    def losses(self, batch: TrainingBatch) -> StepOutput:
        """Reconstruction over variance, the gate's penalty and reconstruction, the auxiliary."""
        x, w = batch.inputs, self.weights
        if batch.step == 0:
            self.start_biases(x)
        b_gate = w.b_enc
        # Both biases come after the shared product: found without one, above −b_gate.
        zero = torch.zeros_like(b_gate)
        selected = select_above(replace(self.pre_activations(x), b_enc=zero), -b_gate.detach())
        pairs, latent = TransposedPairs.of(selected), selected.latent
        shared = encode_selected(x, w.W_enc, zero, w.input_bias, selected, pairs)
        gate = (shared + b_gate[latent]).relu()
        magnitude = (shared * self.r_mag.exp()[latent] + self.b_mag[latent]).relu()
        value = torch.where(gate > 0, magnitude, 0.0)
        baseline = w.baseline(x)
        reconstruction = decode_selected(selected, value, w.W_dec, pairs) + baseline
        by_gate = decode_selected(selected, gate, w.W_dec.detach(), pairs) + baseline.detach()
        by_gate_error = error_of(batch.targets, by_gate).square().mean()
        self._watch(gate.detach(), magnitude.detach())
        codes = selected.with_value(value)
        return self.step_output(
            batch, codes, reconstruction, gate.sum(), gate_reconstruction=by_gate_error
        )

    @torch.no_grad()
    def _watch(self, gate: Float[Tensor, " pairs"], magnitude: Float[Tensor, " pairs"]) -> None:
        is_open = gate > 0
        silent = (is_open & (magnitude == 0)).sum()
        self.silent_share.copy_(silent / is_open.sum().clamp_min(1))

    def metrics(self) -> dict[str, float]:
        """Those of the penalty, and the share of open gates whose magnitude is zero."""
        return {**super().metrics(), "open_gates_without_magnitude": float(self.silent_share)}

    @torch.no_grad()
    def to_dictionary(self, normalisation: Normalisation) -> Dictionary:
        """A `gated` dictionary with mean and scale folded in."""
        folded = self.weights.fold(normalisation)
        return Dictionary(
            "gated",
            b_gate=folded.pop("b_enc"),
            b_mag=self.b_mag / normalisation.code_scale,
            r_mag=self.r_mag.detach().clone(),
            **folded,
        )
