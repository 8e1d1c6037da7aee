"""Encode and decode chosen pairs only, with gradients written by hand on the pairs.

Given which pairs (r, l) are active, `encode_selected` gives their pre-activations
p = (x − b_dec) W_enc + b_enc and `decode_selected` the sums f W_dec of any values f on them; the
rest is ordinary autograd on a vector of pairs, so every gate is a line of a method.
With q = ∂L/∂p on the pairs and G = ∂L/∂(f W_dec),

    ∂W_enc = (x − b_dec)ᵀ q     ∂b_enc = Σ_rows q     ∂b_dec = −W_enc ∂b_enc     ∂x = q W_encᵀ
    ∂f = ⟨G_r, W_dec_l⟩          ∂W_dec = fᵀ G

where f and q are sparse. No [rows, d_sae] matrix is formed in either direction.
`autoencode` composes the two for f = relu(p).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .codes import SparseCodes
from .kernels import TransposedPairs, combine_latents, combine_rows, pair_products


def encode_selected(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    b_in: Float[Tensor, " d_in"],
    selected: SparseCodes,
    pairs: TransposedPairs | None = None,
) -> Float[Tensor, " pairs"]:
    """The pre-activations of the selected pairs, differentiable in everything but the selection.

    Args:
        inputs: activations as the dictionary sees them; b_in is subtracted inside.
        W_enc: encoder weights; fastest with each latent's column contiguous in memory.
        b_in: bias subtracted from the input: b_dec itself in a sparse autoencoder.
        selected: the pairs, with their pre-activations as values; these are what is returned.
        pairs: `TransposedPairs.of(selected)` where it is at hand; it costs a sort.
    """
    pairs = TransposedPairs.of(selected) if pairs is None else pairs
    return _Encode.apply(inputs, W_enc, b_enc, b_in, selected, pairs)


def decode_selected(
    selected: SparseCodes,
    value: Float[Tensor, " pairs"],
    W_dec: Float[Tensor, "d_sae d_in"],
    pairs: TransposedPairs | None = None,
) -> Float[Tensor, "rows d_in"]:
    """Sum the decoder rows of the selected pairs with `value` as weights; no bias is added.

    Args:
        selected: the pairs; their own values play no part.
        pairs: `TransposedPairs.of(selected)` where it is at hand; it costs a sort.
    """
    pairs = TransposedPairs.of(selected) if pairs is None else pairs
    return _Decode.apply(value, W_dec, selected, pairs)


def autoencode(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, "*batch d_out"],
    selected: SparseCodes,
    *,
    b_in: Float[Tensor, " d_in"] | None = None,
) -> tuple[SparseCodes, Float[Tensor, "rows d_out"]]:
    """Rectify and decode the selected pairs; differentiable in everything but the selection.

    Args:
        inputs: activations as the dictionary sees them; b_in is subtracted inside.
        b_dec: added to every row of the reconstruction, or one for each row.
        selected: the active pairs with their pre-activations as values.
        b_in: subtracted from the inputs. None: b_dec.

    Returns:
        The codes (pre-activations rectified; a negative one becomes a listed zero) and the
        reconstruction.
    """
    pairs = TransposedPairs.of(selected)
    b_in = b_dec if b_in is None else b_in
    value = encode_selected(inputs, W_enc, b_enc, b_in, selected, pairs).relu()
    reconstruction = decode_selected(selected, value, W_dec, pairs) + b_dec
    return selected.with_value(value), reconstruction


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        selected: SparseCodes,
        pairs: TransposedPairs,
    ) -> Tensor:
        del b_enc
        ctx.save_for_backward(inputs, W_enc, b_dec)
        ctx.selected, ctx.pairs = selected, pairs
        return selected.value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (q,) = gradients
        inputs, W_enc, b_dec = ctx.saved_tensors
        selected: SparseCodes = ctx.selected
        dinputs = dW_enc = db_dec = None
        db_enc = q.new_zeros(selected.d_sae).index_add_(0, selected.latent, q)
        if ctx.needs_input_grad[0]:
            dinputs = combine_latents(selected.with_value(q), W_enc.T)
        if ctx.needs_input_grad[1]:
            dW_enc = combine_rows(ctx.pairs, q, inputs - b_dec).T
        if ctx.needs_input_grad[3]:
            db_dec = -(W_enc @ db_enc)
        return dinputs, dW_enc, db_enc, db_dec, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, W_dec: Tensor, selected: SparseCodes, pairs: TransposedPairs
    ) -> Tensor:
        ctx.save_for_backward(value, W_dec)
        ctx.selected, ctx.pairs = selected, pairs
        return combine_latents(selected.with_value(value), W_dec)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (output_gradient,) = gradients
        value, W_dec = ctx.saved_tensors
        dvalue = dW_dec = None
        if ctx.needs_input_grad[0]:
            dvalue = pair_products(ctx.selected, output_gradient, W_dec)
        if ctx.needs_input_grad[1]:
            dW_dec = combine_rows(ctx.pairs, value, output_gradient)
        return dvalue, dW_dec, None, None
