"""One matrix that encodes and decodes: unit rows, each with an output scale of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.dictionary import Dictionary


class TiedWeights(nn.Module):
    """Directions w_l of norm one, scales a_l, and a b_pre that nothing trains.

    Latent l encodes u as w_l · (u − b_pre) and decodes f as f a_l w_l. `W_enc`, `b_enc`, `W_dec`
    and `b_dec` say the same in the words of an untied autoencoder; gradients arrive here.
    """

    b_dec: Float[Tensor, " d_in"]

    def __init__(self, d_in: int, d_sae: int, *, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(d_sae, d_in, generator=generator)
        self.directions = nn.Parameter(directions / directions.norm(dim=1, keepdim=True))
        self.scales = nn.Parameter(torch.ones(d_sae))
        self.register_buffer("b_dec", torch.zeros(d_in))

    @property
    def input_bias(self) -> Float[Tensor, " d_in"]:
        """What is subtracted from the input, and added to the output again."""
        return self.b_dec

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """Encoder weights, each latent's contiguous in memory."""
        return self.directions.T

    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]:
        """Encoder bias: none, since thresholds are no part of what is encoded."""
        return self.directions.new_zeros(self.directions.shape[0])

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        """Decoder weights, made at each call."""
        return self.directions * self.scales.unsqueeze(1)

    @torch.no_grad()
    def remove_radial_gradient(self) -> None:
        """Take from the directions' gradient what would only change their norms, held at one."""
        gradient = self.directions.grad
        if gradient is None:
            return
        along = torch.linalg.vecdot(gradient, self.directions)
        gradient.addcmul_(self.directions, along.unsqueeze(1), value=-1.0)

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring every direction back to norm one."""
        norms = torch.linalg.vector_norm(self.directions, dim=1, keepdim=True)
        self.directions /= norms.clamp_min(1e-12)

    @torch.no_grad()
    def to_dictionary(self, thresholds: Float[Tensor, " d_sae"]) -> Dictionary:
        """A `jumprelu` dictionary that brings each row to norm √d_in where this saw norm one.

        Everything of the input's size grows by √d_in (b_dec, thresholds, codes), and the
        reconstruction with it; the dictionary then multiplies it by ‖x‖ / √d_in.
        """
        grown = self.b_dec.shape[0] ** 0.5
        return Dictionary(
            "jumprelu",
            W_enc=self.W_enc.detach().clone(),
            b_enc=self.b_enc,
            W_dec=self.W_dec.detach(),
            b_dec=self.b_dec * grown,
            threshold=thresholds * grown,
            input_normalisation="constant_norm_rescale",
        )
