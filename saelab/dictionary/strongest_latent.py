"""Which latents may point most along each row: a few candidates from one half-precision product.

The product of rounded rows and latents is off by at most

    ‖d − d̃‖ ‖r‖ + ‖d̃‖ ‖r − r̃‖ + what rounding its sum and storing it add,

all of it known. So the latent with the largest product is among those within twice that of the
largest found, which are few; whoever compares their exact products decides as an exact product over
all latents would, at the price of a bfloat16 one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.sparse import SparseCodes
from saelab.stats.cosines import BLOCK_ROWS

GROUP = 64
"""Latents whose largest product is looked at together."""


class Candidates(NamedTuple):
    """Latents that may have the largest product, as pairs, and the rows that need a closer look."""

    row: Int[Tensor, " pairs"]
    """The row of each pair, in no order."""
    latent: Int[Tensor, " pairs"]
    """The latent of each pair."""
    unclear: Bool[Tensor, " rows"]
    """Rows without pairs: even products of the largest latents may lie on either side of zero."""


class LatentScreen:
    """Finds candidates for the latent that points most along each row.

    Args:
        latents: the decoder's rows.
        dtype: of the product; bfloat16 where the processor multiplies it fast.
    """

    def __init__(self, latents: Float[Tensor, "d_sae d_in"], dtype: torch.dtype = torch.bfloat16):
        self.dtype = dtype
        self.n_groups = -(-latents.shape[0] // GROUP)
        rounded = latents.new_zeros(self.n_groups * GROUP, latents.shape[1], dtype=dtype)
        rounded[: latents.shape[0]] = latents.to(dtype)
        self._rounded = rounded
        blocks = [*zip(latents.split(BLOCK_ROWS), rounded.split(BLOCK_ROWS), strict=False)]
        self._latent_error = max(
            _largest_norm(block.double() - near[: len(block)].double()) for block, near in blocks
        )
        self._latent_norm = max(_largest_norm(near.double()) for _, near in blocks)
        self._members = self.n_groups * torch.arange(GROUP, device=latents.device)
        self._integer = {2: torch.int16, 4: torch.int32}[rounded.element_size()]

    def __call__(
        self,
        residual: Float[Tensor, "rows d_in"],
        slack: Float[Tensor, " rows"],
        searched: Bool[Tensor, " rows"],
        taken: SparseCodes | None = None,
    ) -> Candidates:
        """The latents that may have the largest positive product.

        Args:
            residual: rows in float32.
            slack: how far each row may be from the one that is meant, as a norm.
            searched: rows that candidates are wanted for; the others get none.
            taken: latents of each row that are left out of the search.
        """
        product, error = self._rounded_product(residual, slack)
        if taken is not None:
            product[taken.pair_rows(), taken.latent] = -1.0
        # Of positive floats the bits, read as integers, are ordered as they are; negative floats
        # are negative integers. So one integer maximum finds the largest positive product.
        bits = product.view(self._integer).view(len(product), GROUP, self.n_groups)
        largest = bits.amax(1)
        top = largest.amax(1).view(self.dtype).float()
        # The stored products of the largest and of another may each be rounded once more.
        floor = top - 2 * error - 2 * torch.finfo(self.dtype).eps * top
        clear = floor > 0
        floor_bits = floor.clamp(min=0).to(self.dtype).view(self._integer) - 1
        floor_bits[~(clear & searched)] = torch.iinfo(self._integer).max
        row, group = (largest > floor_bits.unsqueeze(1)).nonzero(as_tuple=True)
        members = (row * (GROUP * self.n_groups) + group).unsqueeze(1) + self._members
        index, member = (torch.take(bits, members) > floor_bits[row].unsqueeze(1)).nonzero(
            as_tuple=True
        )
        latent = member * self.n_groups + group[index]
        return Candidates(row[index], latent, searched & ~clear)

    def _rounded_product(self, residual: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """The product of rounded factors, and how far each row's may be off before it is stored."""
        rows = residual.to(self.dtype)
        norm = torch.linalg.vector_norm(residual, dim=1)
        off = torch.linalg.vector_norm(residual - rows, dim=1) + slack
        summing = residual.shape[1] * torch.finfo(torch.float32).eps * self._latent_norm
        error = (self._latent_error + summing) * norm + self._latent_norm * off
        return rows @ self._rounded.T, error * 1.001


def _largest_norm(vectors: Tensor) -> float:
    return float(torch.linalg.vector_norm(vectors, dim=1).max()) if len(vectors) else 0.0
