"""The three products over active pairs; each is the gradient of another.

For codes S (sparse, rows × d_sae), a matrix of rows D and one of latents L (both [·, d_in]):

* `combine_latents`:  S L          (decode, and the gradient of the encoder's input)
* `pair_products`:    ⟨D_r, L_l⟩ for every pair (r, l) of S  (the gradient of the codes)
* `combine_rows`:     Sᵀ D         (both weight gradients)

All reduce in an order fixed by the pairs, without atomics on the CPU, so repeated runs agree bit
for bit. Costs grow with pairs × d_in, not with rows × d_sae, up to the density where one dense
product is cheaper (codes of the first steps of methods that start dense); from there on that is it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from .codes import SparseCodes, stable_order

CUDA_PAIRS_PER_GATHER = 1 << 20
"""Bounds the temporary of `pair_products` on a GPU to this many gathered rows."""
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
    return functional.embedding_bag(
        codes.latent,
        latents,
        codes.row_pointer,
        mode="sum",
        per_sample_weights=codes.value.to(latents.dtype),
        include_last_offset=True,
    )


def pair_products(
    codes: SparseCodes, rows: Float[Tensor, "rows d_in"], latents: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " pairs"]:
    """The inner product of row and latent for every pair; the codes' values are ignored."""
    if is_dense(codes):
        return (rows @ latents.T)[codes.pair_rows(), codes.latent]
    if rows.device.type == "cpu":
        return _sampled_product(codes, rows, latents)
    pair_rows = codes.pair_rows()
    parts = [
        (rows[pair_rows[piece]] * latents[codes.latent[piece]]).sum(1)
        for piece in _pieces(codes.latent.shape[0], CUDA_PAIRS_PER_GATHER)
    ]
    return torch.cat(parts) if parts else rows.new_zeros(0)


@dataclass(frozen=True, eq=False)
class TransposedPairs:
    """The pairs of some codes ordered by latent: what both weight gradients need, made once."""

    latent_pointer: Int[Tensor, " d_sae_plus_one"]
    """Where each latent's pairs begin."""
    row: Int[Tensor, " pairs"]
    """The row of each pair, in the new order."""
    order: Int[Tensor, " pairs"]
    """The old place of each pair: `values[order]` brings values into the new order."""

    @staticmethod
    def of(codes: SparseCodes) -> TransposedPairs:
        """Sort the pairs of `codes` by latent, rows in their order within a latent."""
        order = stable_order(codes.latent)
        latent_pointer = torch.zeros(codes.d_sae + 1, dtype=torch.int64, device=order.device)
        counts = torch.zeros(codes.d_sae, dtype=torch.int64, device=order.device)
        # Not bincount, which waits for the device.
        counts.index_add_(0, codes.latent, torch.ones_like(codes.latent))
        torch.cumsum(counts, 0, out=latent_pointer[1:])
        return TransposedPairs(latent_pointer, codes.pair_rows()[order], order)

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
    return functional.embedding_bag(
        pairs.row,
        rows,
        pairs.latent_pointer,
        mode="sum",
        per_sample_weights=value[pairs.order].to(rows.dtype),
        include_last_offset=True,
    )


def _sampled_product(codes: SparseCodes, rows: Tensor, latents: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # PyTorch calls its CSR layout beta and its unchecked invariants a risk; ours hold by
        # construction and are tested.
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
        pattern = torch.sparse_csr_tensor(
            codes.row_pointer,
            codes.latent,
            torch.zeros(codes.latent.shape[0], dtype=rows.dtype),
            size=(codes.n_rows, codes.d_sae),
        )
        return torch.sparse.sampled_addmm(pattern, rows, latents.T, beta=0.0).values()


def _pieces(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
