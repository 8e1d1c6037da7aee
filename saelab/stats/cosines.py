"""Cosines between decoder rows of two dictionaries, in blocks: the matrix never exists whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BLOCK_ENTRIES = 1 << 24
"""Cosines held at a time (64 MB in float32)."""


@dataclass(frozen=True, eq=False)
class Directions:
    """The latents of a dictionary that take part in a comparison."""

    rows: Float[Tensor, "alive d_in"]
    """Their decoder rows divided by their norms, float32; a zero row stays zero."""
    latent: Int[Tensor, " alive"]
    """Which latents they are."""


def directions_of(
    W_dec: Float[Tensor, "d_sae d_in"], alive: Bool[Tensor, " d_sae"] | None = None
) -> Directions:
    """The unit decoder rows of the alive latents; of all where `alive` is None."""
    everyone = torch.arange(W_dec.shape[0], device=W_dec.device)
    latent = everyone if alive is None else everyone[alive.to(W_dec.device)]
    rows = W_dec[latent].double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return Directions(rows.float(), latent)


def cosine_blocks(
    one: Float[Tensor, "n d_in"], other: Float[Tensor, "m d_in"]
) -> Iterator[tuple[slice, Float[Tensor, "block m"]]]:
    """The cosines of all rows of `one` with all of `other`, a few rows of `one` at a time."""
    step = max(1, BLOCK_ENTRIES // max(1, other.shape[0]))
    for start in range(0, one.shape[0], step):
        part = slice(start, min(start + step, one.shape[0]))
        yield part, one[part] @ other.T


def nearest(
    one: Float[Tensor, "n d_in"], other: Float[Tensor, "m d_in"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " m"], Int[Tensor, " m"]]:
    """The largest signed cosine of every row with the other side, and whose it is.

    Returns:
        Of the rows of `one`: cosine, place in `other`; of the rows of `other`: cosine, place in
        `one`. The first of equal cosines is taken.
    """
    cosine, place = one.new_empty(one.shape[0]), one.new_empty(one.shape[0], dtype=torch.int64)
    back = other.new_full((other.shape[0],), -torch.inf)
    back_place = other.new_zeros(other.shape[0], dtype=torch.int64)
    for part, block in cosine_blocks(one, other):
        cosine[part], place[part] = block.max(dim=1)
        largest, row = block.max(dim=0)
        better = largest > back
        back[better], back_place[better] = largest[better], row[better] + part.start
    return cosine, place, back, back_place
