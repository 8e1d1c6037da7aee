"""Inner products of latents: looked up where those of all fit in memory, else computed."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sparse import SparseCodes
from saelab.sparse.kernels import pair_products

MOST_STORED = 10_000
"""Latents up to which all inner products are stored: 800 MB in float64."""


class InnerProducts:
    """⟨d_i, d_j⟩ in float64.

    Args:
        latents: the decoder's rows d, in float64.
    """

    def __init__(self, latents: Float[Tensor, "d_sae d_in"]):
        self.latents = latents
        self.squares = latents.square().sum(1)
        stored = latents.shape[0] <= MOST_STORED
        self._table = latents @ latents.T if stored else None

    def __call__(self, one: Int[Tensor, " n"], others: Int[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """The products of each latent with its `k` others."""
        if self._table is not None:
            return torch.take(self._table, one.unsqueeze(1) * len(self._table) + others)
        pairs = SparseCodes.from_fixed_k(
            others, torch.ones_like(others, dtype=torch.float64), len(self.latents)
        )
        return pair_products(pairs, self.latents[one], self.latents).view(others.shape)
