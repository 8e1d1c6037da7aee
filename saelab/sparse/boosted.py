"""Top-k by a score that a gradient raises: z · (1 + |g · W_dec|), with z itself as the value.

A second dense product, of the gradients with the decoder's rows, runs beside the encoder's, chunk
by chunk; no [rows, d_sae] matrix is formed by either. The factor is at least one, so only the order
among positive pre-activations changes (Olmo et al., 2024, arXiv 2411.10397, Figure 1; the scale of
g carries β).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .codes import SparseCodes
from .selection import exact_pre_activations, pre_activation_chunks, top_k


@torch.no_grad()
def select_boosted_top_k(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    gradients: Float[Tensor, "rows d_out"],
    W_dec: Float[Tensor, "d_sae d_out"],
    *,
    product_dtype: torch.dtype | None = None,
) -> SparseCodes:
    """The k pairs of each row with the largest score; values are pre-activations, not scores.

    Args:
        inputs: what is encoded, centred by the decoder bias where that applies.
        W_enc: encoder weights.
        b_enc: encoder bias.
        k: pairs to choose in each row.
        gradients: of the loss with respect to the row, multiplied by β.
        W_dec: decoder weights, rows of norm one.
        product_dtype: dtype of both dense products; None means that of `inputs`.
    """
    d_sae = W_dec.shape[0]
    encoded = pre_activation_chunks(inputs, W_enc, b_enc, product_dtype=product_dtype)
    projected = pre_activation_chunks(
        gradients, W_dec.T, W_dec.new_zeros(d_sae), product_dtype=product_dtype
    )
    places = []
    for (_, pre_activations), (_, attribution) in zip(encoded, projected, strict=True):
        scores = attribution.abs_().add_(1).mul_(pre_activations)
        places.append(top_k(scores, k)[1])
    if not places:
        places.append(torch.zeros(0, 0, dtype=torch.int64, device=inputs.device))
    latents = torch.cat(places)
    chosen = SparseCodes.from_fixed_k(latents, inputs.new_zeros(latents.shape), d_sae)
    return chosen.with_value(exact_pre_activations(chosen, inputs, W_enc, b_enc))
