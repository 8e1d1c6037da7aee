"""The three products over active pairs; each is the gradient of another.

For codes S (sparse, rows × d_sae), a matrix of rows D and one of latents L (both [·, d_in]):

* `combine_latents`:  S L          (decode, and the gradient of the encoder's input)
* `pair_products`:    ⟨D_r, L_l⟩ for every pair (r, l) of S  (the gradient of the codes)
* `combine_rows`:     Sᵀ D         (both weight gradients)

Each is a kernel of the backend where the tensors lie (`backends`). Costs grow with pairs × d_in,
not with rows × d_sae, up to the density where one dense product is cheaper (codes of the first
steps of methods that start dense); from there on that is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .backends import backend_of
from .codes import SparseCodes, pointer_of

DENSE_SHARE = 0.1
"""Share of all pairs above which a dense product takes less time than the pairs one by one."""


def is_dense(codes: SparseCodes) -> bool:
    """Whether so many pairs are listed that dense products over them are cheaper."""
    return codes.latent.shape[0] > DENSE_SHARE * codes.n_rows * codes.d_sae


def combine_latents(
    codes: SparseCodes, latents: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "rows d_in"]:
    """Sum the latents' rows with the codes as weights: S L."""
    if codes.latent.shape[0] == 0:
        return latents.new_zeros(codes.n_rows, latents.shape[1])
    if is_dense(codes):
        return codes.to_dense().to(latents.dtype) @ latents
    kernels = backend_of(latents)
    return kernels.weighted_sums(codes.row_pointer, codes.latent, codes.value, latents)


def pair_products(
    codes: SparseCodes, rows: Float[Tensor, "rows d_in"], latents: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " pairs"]:
    """The inner product of row and latent for every pair; the codes' values are ignored."""
    if is_dense(codes):
        return (rows @ latents.T)[codes.pair_rows(), codes.latent]
    sampled_product = backend_of(rows).sampled_product
    return sampled_product(codes.row_pointer, codes.latent, rows, latents)


@dataclass(frozen=True, eq=False)
class TransposedPairs:
    """The pairs of some codes ordered by latent: what both weight gradients need, made once."""

    latent_pointer: Int[Tensor, " d_sae_plus_one"]
    """Where each latent's pairs begin."""
    row: Int[Tensor, " pairs"]
    """The row of each pair, in the new order."""
    order: Int[Tensor, " pairs"]
    """The old index of each pair: `values[order]` brings values into the new order."""

    @staticmethod
    def of(codes: SparseCodes) -> TransposedPairs:
        """Sort the pairs of `codes` by latent, rows in their order within a latent."""
        order = backend_of(codes.latent).stable_order(codes.latent)
        return TransposedPairs(pointer_of(codes.pair_counts()), codes.pair_rows()[order], order)

    def to_dense(self, value: Float[Tensor, " pairs"], n_rows: int) -> Float[Tensor, "d_sae rows"]:
        """The transposed matrix of these pairs, with values in the codes' order."""
        d_sae = self.latent_pointer.shape[0] - 1
        latents = torch.arange(d_sae, device=self.row.device)
        latent = latents.repeat_interleave(
            self.latent_pointer.diff(), output_size=int(self.row.shape[0])
        )
        return value.new_zeros(d_sae, n_rows).index_put((latent, self.row), value[self.order])


def combine_rows(
    pairs: TransposedPairs, value: Float[Tensor, " pairs"], rows: Float[Tensor, "rows d_in"]
) -> Float[Tensor, "d_sae d_in"]:
    """Sum the rows with the pairs' values (in the codes' order) as weights: Sᵀ D."""
    d_sae = pairs.latent_pointer.shape[0] - 1
    if value.shape[0] == 0:
        return rows.new_zeros(d_sae, rows.shape[1])
    if value.shape[0] > DENSE_SHARE * d_sae * rows.shape[0]:
        return pairs.to_dense(value, rows.shape[0]).to(rows.dtype) @ rows
    kernels = backend_of(rows)
    return kernels.weighted_sums(pairs.latent_pointer, pairs.row, value[pairs.order], rows)
