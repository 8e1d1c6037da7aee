"""The four weights of an autoencoder in training, their start, and the unit-norm decoder."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..interface import Normalisation


class AutoencoderWeights(nn.Module):
    """W_enc, b_enc, W_dec and b_dec with unit-norm decoder rows and an encoder tied at the start.

    The encoder is kept latent by latent, as `encoder_rows` [d_sae, d_in]: single latents are what
    the sparse kernels gather, and the fused optimizer copies a parameter that is not contiguous.
    `W_enc` is its transposed view.
    """

    def __init__(self, d_in: int, d_sae: int, *, seed: int, encoder_scale: float = 1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(d_sae, d_in, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(directions.clone())
        self.encoder_rows = nn.Parameter(directions * encoder_scale)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """Encoder weights; a gradient through this view arrives at `encoder_rows`."""
        return self.encoder_rows.T

    @torch.no_grad()
    def remove_radial_gradient(self) -> None:
        """Take from ∂W_dec what would only change the rows' norms, which are held at one.

        Left in, it would be undone by the renormalisation after every step but still fill Adam's
        moments (as in the TopK recipe of Gao et al., 2024, section 2).
        """
        gradient = self.W_dec.grad
        if gradient is None:
            return
        along = torch.linalg.vecdot(gradient, self.W_dec)
        gradient.addcmul_(self.W_dec, along.unsqueeze(1), value=-1.0)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Bring every decoder row back to norm one."""
        self.W_dec /= torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def fold(self, normalisation: Normalisation) -> dict[str, Any]:
        """The weights that act on activations in the model's own units.

        Decoder rows keep their norm, so codes and everything compared with them (biases,
        thresholds) are divided by the scale. With s the scale and μ the mean:
        b_dec → μ + b_dec / s, b_enc → b_enc / s, W_enc and W_dec unchanged.
        """
        return {
            "W_enc": self.W_enc.detach().clone(),
            "b_enc": self.b_enc.detach() / normalisation.scale,
            "W_dec": self.W_dec.detach().clone(),
            "b_dec": normalisation.mean + self.b_dec.detach() / normalisation.scale,
        }
