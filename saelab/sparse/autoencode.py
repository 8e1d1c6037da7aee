"""Decode chosen pairs, with every gradient of the autoencoder written by hand on the pairs.

Given which pairs are active, the reconstruction is x̂ = relu(p) W_dec + b_dec with
p = (x − b_dec) W_enc + b_enc at those pairs only. Call G = ∂L/∂x̂, and V = ∂L/∂f what losses on the
codes themselves ask for. The gradient of a pair's p is q = (⟨G_r, W_dec_l⟩ + V) · 1[p > 0], and

    ∂W_dec = fᵀ G      ∂W_enc = (x − b_dec)ᵀ q      ∂b_enc = Σ_rows q
    ∂b_dec = Σ_rows G − W_enc ∂b_enc               ∂x = q W_encᵀ  (only when asked for)

where f and q are sparse. No [rows, d_sae] matrix is formed in either direction.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .codes import SparseCodes
from .kernels import TransposedPairs, combine_latents, combine_rows, pair_products


def autoencode(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    selected: SparseCodes,
    *,
    add_b_dec: bool = True,
) -> tuple[SparseCodes, Float[Tensor, "rows d_in"]]:
    """Rectify and decode the selected pairs; differentiable in everything but the selection.

    Args:
        inputs: activations as the dictionary sees them; b_dec is subtracted inside.
        W_enc: encoder weights; fastest with each latent's column contiguous in memory.
        b_enc: encoder bias.
        W_dec: decoder weights.
        b_dec: decoder bias.
        selected: the active pairs with their pre-activations as values.
        add_b_dec: False leaves b_dec out of the output, as auxiliary losses on the error need.

    Returns:
        The codes (pre-activations rectified; a negative one becomes a listed zero) and the
        reconstruction.
    """
    value, reconstruction = _Autoencode.apply(
        inputs, W_enc, b_enc, W_dec, b_dec, selected, add_b_dec
    )
    return selected.with_value(value), reconstruction


class _Autoencode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        selected: SparseCodes,
        add_b_dec: bool,
    ) -> tuple[Tensor, Tensor]:
        del b_enc
        codes = selected.with_value(selected.value.clamp_min(0))
        reconstruction = combine_latents(codes, W_dec)
        if add_b_dec:
            reconstruction += b_dec
        ctx.save_for_backward(
            inputs, W_enc, W_dec, b_dec, codes.row_pointer, codes.latent, codes.value
        )
        ctx.d_sae, ctx.add_b_dec = codes.d_sae, add_b_dec
        ctx.set_materialize_grads(False)
        return codes.value, reconstruction

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        value_gradient, output_gradient = gradients
        inputs, W_enc, W_dec, b_dec, row_pointer, latent, value = ctx.saved_tensors
        codes = SparseCodes(row_pointer, latent, value, ctx.d_sae)
        pairs = TransposedPairs.of(codes)

        pre_gradient = torch.zeros_like(value)
        dW_dec = db_dec = dinputs = None
        if output_gradient is not None:
            pre_gradient += pair_products(codes, output_gradient, W_dec)
            dW_dec = combine_rows(pairs, value, output_gradient)
            if ctx.add_b_dec:
                db_dec = output_gradient.sum(0)
        if value_gradient is not None:
            pre_gradient += value_gradient
        pre_gradient *= value > 0

        db_enc = value.new_zeros(ctx.d_sae).index_add_(0, latent, pre_gradient)
        dW_enc = combine_rows(pairs, pre_gradient, inputs - b_dec).T
        through_input = W_enc @ db_enc
        db_dec = -through_input if db_dec is None else db_dec - through_input
        if ctx.needs_input_grad[0]:
            dinputs = combine_latents(codes.with_value(pre_gradient), W_enc.T)
        return dinputs, dW_enc, db_enc, dW_dec, db_dec, None, None
