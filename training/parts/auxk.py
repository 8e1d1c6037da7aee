"""AuxK: dead latents learn to predict what the live ones left over (Gao et al., 2024, section 2.4).

With e the error of the reconstruction (held constant) and ê the decoding of each row's k_aux
largest pre-activations among dead latents, rectified and without b_dec, the loss is
‖e − ê‖² / ‖e − mean(e)‖², summed over the batch. The gradient reaches W_dec and the encoder alike.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sparse import SparseCodes, autoencode, top_k

from .weights import AutoencoderWeights


def select_among(
    pre_activations: Float[Tensor, "rows d_sae"], latents: Int[Tensor, " n_dead"], k: int
) -> tuple[Float[Tensor, "rows k_aux"], Int[Tensor, "rows k_aux"]]:
    """The k largest pre-activations of each row among some latents, all of them if fewer."""
    among = pre_activations[:, latents]
    if latents.shape[0] <= k:
        return among, latents.expand(among.shape[0], -1)
    values, places = top_k(among, k)
    return values, latents[places]


def auxk_loss(
    weights: AutoencoderWeights,
    inputs: Float[Tensor, "rows d_in"],
    error: Float[Tensor, "rows d_in"],
    selected: SparseCodes,
) -> Float[Tensor, ""]:
    """The AuxK loss for already selected pairs of dead latents.

    Args:
        weights: of the dictionary in training.
        inputs: normalised activations.
        error: activations minus reconstruction; no gradient flows into it.
        selected: pairs of dead latents with their pre-activations.

    Returns:
        The normalised loss, about 1 while dead latents explain nothing; 0 where the error has no
        variance at all.
    """
    error = error.detach()
    _, prediction = autoencode(
        inputs,
        weights.W_enc,
        weights.b_enc,
        weights.W_dec,
        weights.b_dec,
        selected,
        add_b_dec=False,
    )
    variance = (error - error.mean(0)).square().sum()
    squared = (error - prediction).square().sum()
    # A safe divisor as well as a safe result: an unused division by zero still has a NaN gradient.
    varies = variance > 0
    divisor = torch.where(varies, variance, torch.ones_like(variance))
    return torch.where(varies, squared / divisor, torch.zeros_like(squared))
