"""`SparseCodes`: the active latents of a batch of rows, in compressed-sparse-row form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from .backends import backend_of


def pointer_of(counts: Shaped[Tensor, " n"]) -> Int[Tensor, " n_plus_one"]:
    """Where each group begins, of groups of these sizes one after another; last, the total."""
    pointer = torch.zeros(counts.shape[0] + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=pointer[1:])
    return pointer


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Codes f of `n_rows` inputs over `d_sae` latents; everything not listed is zero.

    Row r owns the pairs `row_pointer[r]` to `row_pointer[r + 1]`. A latent appears at most once in
    a row; the order within a row carries no meaning.
    """

    row_pointer: Int[Tensor, " rows_plus_one"]
    """Where each row's pairs begin; the last entry is the number of pairs."""
    latent: Int[Tensor, " pairs"]
    """Which latent each pair belongs to."""
    value: Float[Tensor, " pairs"]
    """The code of each pair. A listed value may be zero; it then counts as inactive."""
    d_sae: int
    """Number of latents."""
    row_scale: Float[Tensor, " rows"] | None = None
    """What each decoded row is multiplied by, where the input was divided by it; None: by one."""
    row_offset: Float[Tensor, "rows _"] | None = None
    """What is added to each decoded row after that, a number or a row of d_out; None: nothing."""

    @staticmethod
    def from_fixed_k(
        latent: Int[Tensor, "rows k"], value: Float[Tensor, "rows k"], d_sae: int
    ) -> SparseCodes:
        """Codes with the same number of pairs in every row, as a top-k selection gives."""
        rows, k = latent.shape
        row_pointer = k * torch.arange(rows + 1, device=latent.device)
        return SparseCodes(row_pointer, latent.reshape(-1), value.reshape(-1), d_sae)

    @staticmethod
    def from_dense(dense: Float[Tensor, "rows d_sae"]) -> SparseCodes:
        """The non-zero entries of dense codes, by row and then by latent."""
        return SparseCodes.from_mask(dense, dense != 0)

    @staticmethod
    def from_mask(
        dense: Float[Tensor, "rows d_sae"], mask: Bool[Tensor, "rows d_sae"]
    ) -> SparseCodes:
        """The entries of `dense` where `mask` holds, by row and then by latent."""
        row, latent = mask.nonzero(as_tuple=True)
        return SparseCodes(pointer_of(mask.sum(1)), latent, dense[row, latent], dense.shape[1])

    @staticmethod
    def from_pairs(
        row: Int[Tensor, " pairs"],
        latent: Int[Tensor, " pairs"],
        value: Float[Tensor, " pairs"],
        n_rows: int,
        d_sae: int,
    ) -> SparseCodes:
        """Codes from pairs listed in any order."""
        order = backend_of(row).stable_order(row)
        row_pointer = torch.searchsorted(row[order], torch.arange(n_rows + 1, device=row.device))
        return SparseCodes(row_pointer, latent[order], value[order], d_sae)

    @staticmethod
    def stacked(parts: Sequence[SparseCodes], d_sae: int, like: Tensor) -> SparseCodes:
        """Codes of several batches below one another; of none, with the dtype of `like`."""
        none = torch.zeros(0, dtype=torch.int64, device=like.device)
        counts = torch.cat([*(part.row_pointer.diff() for part in parts), none])
        latent = torch.cat([*(part.latent for part in parts), none])
        value = torch.cat([*(part.value for part in parts), like.new_zeros(0)])
        return SparseCodes(pointer_of(counts), latent, value, d_sae)

    @property
    def n_rows(self) -> int:
        """Number of input rows."""
        return self.row_pointer.shape[0] - 1

    def with_value(self, value: Float[Tensor, " pairs"]) -> SparseCodes:
        """The same pairs with other values."""
        return replace(self, value=value)

    def scaled_values(self) -> Float[Tensor, " pairs"]:
        """Each code times its row's scale: what multiplies the decoder row in activation units."""
        if self.row_scale is None:
            return self.value
        return self.value * self.row_scale[self.pair_rows()]

    def contributions(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, " pairs"]:
        """The norm of what each pair adds to its row: |code| · row's scale · decoder row's norm.

        It does not depend on how codes and decoder share their scale, so it compares dictionaries;
        with the neurons of an MLP for latents it is the norm of a neuron's output.
        """
        return self.scaled_values().abs() * norms[self.latent]

    def pair_rows(self) -> Int[Tensor, " pairs"]:
        """The row each pair belongs to."""
        rows = torch.arange(self.n_rows, device=self.latent.device)
        return rows.repeat_interleave(
            self.row_pointer.diff(), output_size=int(self.latent.shape[0])
        )

    def to_dense(self) -> Float[Tensor, "rows d_sae"]:
        """Dense codes; memory grows with rows × d_sae."""
        dense = self.value.new_zeros(self.n_rows, self.d_sae)
        return dense.index_put((self.pair_rows(), self.latent), self.value)

    def l0(self) -> Int[Tensor, " rows"]:
        """Number of positive codes of each row."""
        counts = torch.zeros(self.n_rows, dtype=torch.int64, device=self.latent.device)
        return counts.index_add_(0, self.pair_rows(), (self.value > 0).long())

    def pair_counts(self) -> Int[Tensor, " d_sae"]:
        """Number of pairs of each latent, listed zeros included."""
        counts = torch.zeros(self.d_sae, dtype=torch.int64, device=self.latent.device)
        # Not bincount, which waits for the device.
        return counts.index_add_(0, self.latent, torch.ones_like(self.latent))

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """Number of rows on which each latent has a positive code."""
        counts = torch.zeros(self.d_sae, dtype=torch.int64, device=self.latent.device)
        return counts.index_add_(0, self.latent, (self.value.detach() > 0).long())

    def fired(self) -> Bool[Tensor, " d_sae"]:
        """Which latents have a positive code in any row; a selected zero does not count."""
        fired = torch.zeros(self.d_sae, dtype=torch.bool, device=self.latent.device)
        # A latent can be listed both with and without a value, so set true where any is positive.
        return fired.index_put_((self.latent,), self.value.detach() > 0, accumulate=True)

    def keep(self, kept: Bool[Tensor, " pairs"]) -> SparseCodes:
        """Only the pairs for which `kept` holds, in their order."""
        return replace(
            self,
            row_pointer=pointer_of(kept)[self.row_pointer],
            latent=self.latent[kept],
            value=self.value[kept],
        )

    def of_latents(self, start: int, stop: int) -> SparseCodes:
        """Only the codes of a range of latents, which is counted from its start."""
        kept = self.keep((self.latent >= start) & (self.latent < stop))
        return replace(kept, latent=kept.latent - start, d_sae=stop - start)

    def largest(self, k: int) -> SparseCodes:
        """Only the k largest codes of each row; of equal ones any are taken."""
        falling = self.value.argsort(descending=True)
        row = self.pair_rows()
        order = falling[row[falling].argsort(stable=True)]
        rank = torch.arange(len(order), device=order.device) - self.row_pointer[row]
        kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        return self.keep(kept.index_put((order,), rank < k))

    def without_zeros(self) -> SparseCodes:
        """The same codes with the pairs of value zero left out."""
        return self.keep(self.value != 0)
