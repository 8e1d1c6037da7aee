"""The encoder's dense product, taken in chunks of rows, and the exact top-k of each chunk.

The full [rows, d_sae] matrix of pre-activations never exists: a chunk small enough to stay in cache
is computed into a reused workspace, read by whoever selects from it, and overwritten. That saves
the page faults and the memory traffic of a temporary a hundred times the size of its result.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .backends import backend_of
from .codes import SparseCodes
from .kernels import pair_products


def pre_activation_chunks(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    *,
    product_dtype: torch.dtype | None = None,
) -> Iterator[tuple[slice, Float[Tensor, "chunk d_sae"]]]:
    """Yield `inputs @ W_enc + b_enc` chunk by chunk, with the rows each chunk covers.

    The yielded tensor is a workspace: it is overwritten by the next chunk, and its reader may
    overwrite it too. No gradient flows through it.

    Args:
        inputs: what is encoded, already centred by the decoder bias where that applies.
        W_enc: encoder weights.
        b_enc: encoder bias.
        product_dtype: the dtype of the product; None means that of `inputs`. With bfloat16 the
            chunk is bfloat16 too.
    """
    dtype = product_dtype or inputs.dtype
    rows, d_sae = inputs.shape[0], W_enc.shape[1]
    chunk_rows = backend_of(inputs).chunk_rows
    with torch.no_grad():
        inputs, W_enc, b_enc = inputs.to(dtype), W_enc.to(dtype), b_enc.to(dtype)
        workspace = inputs.new_empty(min(chunk_rows, rows), d_sae)
        for start in range(0, rows, chunk_rows):
            part = slice(start, min(start + chunk_rows, rows))
            out = workspace[: part.stop - part.start]
            torch.addmm(b_enc, inputs[part], W_enc, out=out)
            yield part, out


def top_k(
    scores: Float[Tensor, "rows d_sae"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest entries of each row and their indices, in no particular order, exactly."""
    return backend_of(scores).top_k(scores, k)


def select_top_k(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    *,
    product_dtype: torch.dtype | None = None,
) -> SparseCodes:
    """Encode and keep the k largest pre-activations of each row, negative ones included.

    With a lower `product_dtype` the choice is made at that precision and the kept pre-activations
    are computed again at the precision of `inputs`, which costs only pairs × d_in.
    """
    chunks = pre_activation_chunks(inputs, W_enc, b_enc, product_dtype=product_dtype)
    return gather_selection([top_k(chunk, k) for _, chunk in chunks], inputs, W_enc, b_enc)


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
    """Top-k by the score z · (1 + |g · W_dec|), with the pre-activation z itself as the value.

    A second dense product, of the gradients with the decoder's rows, runs beside the encoder's,
    chunk by chunk. The factor is at least one, so only the order among positive pre-activations
    changes (Olmo et al., 2024, arXiv 2411.10397, Figure 1; the scale of g carries β).

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
    indices = []
    for (_, pre_activations), (_, attribution) in zip(encoded, projected, strict=True):
        scores = attribution.abs_().add_(1).mul_(pre_activations)
        indices.append(top_k(scores, k)[1])
    if not indices:
        indices.append(torch.zeros(0, 0, dtype=torch.int64, device=inputs.device))
    latents = torch.cat(indices)
    chosen = SparseCodes.from_fixed_k(latents, inputs.new_zeros(latents.shape), d_sae)
    return chosen.with_value(exact_pre_activations(chosen, inputs, W_enc, b_enc))


def gather_selection(
    parts: list[tuple[Float[Tensor, "..."], Int[Tensor, "..."]]],
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
) -> SparseCodes:
    """What was selected chunk by chunk, as the codes of all rows.

    Args:
        parts: values [chunk, k] and latents [chunk, k] of each chunk, in the order of the rows.
        inputs: what the chunks were made from; values chosen at a lower precision than theirs are
            computed again.
        W_enc: encoder weights.
        b_enc: encoder bias.
    """
    d_sae = W_enc.shape[1]
    if not parts:
        parts = [(inputs.new_zeros(0, 0), torch.zeros(0, 0, dtype=torch.int64))]
    value = torch.cat([values for values, _ in parts])
    codes = SparseCodes.from_fixed_k(torch.cat([latents for _, latents in parts]), value, d_sae)
    if value.dtype != inputs.dtype:
        return codes.with_value(exact_pre_activations(codes, inputs, W_enc, b_enc))
    return codes


@torch.no_grad()
def exact_pre_activations(
    codes: SparseCodes,
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
) -> Float[Tensor, " pairs"]:
    """The pre-activations of the listed pairs alone, at the precision of `inputs`."""
    return pair_products(codes, inputs, W_enc.T) + b_enc[codes.latent]
