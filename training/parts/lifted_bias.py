"""Weights whose encoder bias is lifted to zero, for auxiliary losses on rectified latents."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .weights import AutoencoderWeights


@dataclass(frozen=True)
class LiftedBias:
    """What an auxiliary loss needs of an autoencoder whose gate is the sign of p.

    A dead latent of such a dictionary has p ≤ 0 on every row: rectified, it would have no gradient
    and stay dead. Here its bias counts as zero and still gets the gradient (our choice; SAELens
    leaves the rectifier out instead).
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    input_bias: Float[Tensor, " d_in"]

    @staticmethod
    def of(weights: AutoencoderWeights) -> LiftedBias:
        """The lifted view of some weights, good for one step."""
        bias = weights.b_enc
        return LiftedBias(weights.W_enc, bias - bias.detach(), weights.W_dec, weights.input_bias)
