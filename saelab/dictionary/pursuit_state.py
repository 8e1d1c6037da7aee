"""The rows of a batch during gradient pursuit: active latents, their weights, inner products.

Every row has a slot for each step it may take. A slot holds a latent and its weight; a weight of
zero means inactive, whether the slot was never filled or the step's clipping emptied it. With G the
inner products of a row's latents and h those with its signal, the products with the residual are
q = h − G w, so a step costs the square of the active latents instead of d_in × d_sae.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from saelab.sparse import SparseCodes
from saelab.stats.cosines import BLOCK_ENTRIES, BLOCK_ROWS, paired_products

from .strongest_latent import Candidates

MOST_STORED = 10_000
"""Latents up to which all inner products are stored: 800 MB in float64."""

SMALLEST_SQUARE = 1e-12
"""Squared norm of a step's direction, as a share of the signal's, below which a row is done."""
SMALLEST_PRODUCT = 1e-12
"""Product of latent and residual, as a share of their largest norms, that rounding can make."""


class InnerProducts:
    """⟨d_i, d_j⟩ in float64.

    Args:
        latents: the decoder's rows d, of which no more than a few are held in float64 at a time.
    """

    def __init__(self, latents: Float[Tensor, "d_sae d_in"]):
        self.latents = latents
        every = torch.arange(len(latents), device=latents.device)
        self.squares = paired_products(latents, latents, every, every)
        stored = latents.shape[0] <= MOST_STORED
        self._table = latents.double() @ latents.double().T if stored else None

    def __call__(
        self, latent: Int[Tensor, " n"], others: Int[Tensor, "n k"]
    ) -> Float[Tensor, "n k"]:
        """The products of each latent with its `k` others."""
        if self._table is not None:
            return torch.take(self._table, latent.unsqueeze(1) * len(self._table) + others)
        parts = [
            (block @ self.latents[latent[part]].double().unsqueeze(2)).squeeze(2)
            for part, block in self.gathered(others)
        ]
        return torch.cat(parts)

    def gathered(
        self, latent: Int[Tensor, "n k"]
    ) -> Iterator[tuple[slice, Float[Tensor, "block k d_in"]]]:
        """The latents' rows in float64, as many `n` at a time as memory allows, and which."""
        step = max(1, BLOCK_ENTRIES // max(1, latent.shape[1] * self.latents.shape[1]))
        for start in range(0, max(1, len(latent)), step):
            part = slice(start, start + step)
            yield part, self.latents[latent[part]].double()


class Strongest(NamedTuple):
    """The latent with the largest product with each row's residual."""

    latent: Int[Tensor, " rows"]
    """The first of equals; 0 where none was a candidate."""
    product: Float[Tensor, " rows"]
    """Its product with the residual; minus infinity where none was a candidate."""
    signal_product: Float[Tensor, " rows"]
    """Its product with the whole signal."""
    active_products: Float[Tensor, "rows slots"]
    """Its products with the latents of the slots filled so far."""


class PursuitState:
    """Rows on their way; row r may take as many steps as there are slots.

    Args:
        signal: what the rows are to be rebuilt as, in float64.
        inner_products: of the decoder's rows.
        rounded_latents: the decoder's rows in float32.
        n_slots: steps of the row that takes most.
    """

    def __init__(
        self,
        signal: Float[Tensor, "rows d_in"],
        inner_products: InnerProducts,
        rounded_latents: Float[Tensor, "d_sae d_in"],
        n_slots: int,
    ):
        rows = signal.shape[0]
        self.signal, self.n_slots, self.n_steps = signal, n_slots, 0
        self.latent = torch.zeros(rows, n_slots, dtype=torch.int64, device=signal.device)
        self.weight = signal.new_zeros(rows, n_slots)
        self.going = torch.ones(rows, dtype=torch.bool, device=signal.device)
        self._inner_products, self._rounded_latents = inner_products, rounded_latents
        self._rounded_signal = signal.float()
        self._signal_product = signal.new_zeros(rows, n_slots)
        self._gram = signal.new_zeros(rows, n_slots, n_slots)
        squares = signal.square().sum(1)
        self._norm = squares.sqrt()
        self._latent_squares = inner_products.squares
        self._latent_norm = float(self._latent_squares.max().sqrt())
        # A direction's norm grows with the square of the latents'.
        self._smallest = SMALLEST_SQUARE * self._latent_norm**4 * squares
        self._smallest_product = SMALLEST_PRODUCT * self._latent_norm * self._norm

    def residual(
        self, n_rows: int
    ) -> tuple[Float[Tensor, "n_rows d_in"], Float[Tensor, " n_rows"]]:
        """What the first rows' active latents leave of their signals, in float32.

        Returns:
            The residuals, and how far rounding may have moved each, as a norm.
        """
        weight = self.weight[:n_rows, : self.n_steps]
        largest = self._norm[:n_rows] + weight.sum(1) * self._latent_norm
        slack = (self.n_steps + 4) * torch.finfo(torch.float32).eps * largest
        signal = self._rounded_signal[:n_rows]
        if self.n_steps == 0:
            return signal, slack.float()
        explained = functional.embedding_bag(
            self.latent[:n_rows, : self.n_steps],
            self._rounded_latents,
            per_sample_weights=weight.float(),
            mode="sum",
        )
        return torch.sub(signal, explained, out=explained), slack.float()

    def active_codes(self, n_rows: int) -> SparseCodes:
        """The first rows' active latents."""
        row, slot = (self.weight[:n_rows] != 0).nonzero(as_tuple=True)
        return SparseCodes.from_pairs(
            row,
            self.latent[row, slot],
            self.weight[row, slot],
            n_rows,
            len(self._rounded_latents),
        )

    def strongest_of(self, candidates: Candidates, taken: SparseCodes | None) -> Strongest:
        """The candidate with the largest product with the residual, exactly.

        Args:
            candidates: of the first rows; unclear rows are searched through.
            taken: latents that are left out there too.
        """
        n_rows, d_sae = candidates.unclear.shape[0], len(self._rounded_latents)
        row, latent = candidates.row, candidates.latent
        latents = self._inner_products.latents
        whole = paired_products(self.signal, latents, row, latent)
        others = self._inner_products(latent, self.latent[row, : self.n_steps])
        product = whole - (others * self.weight[row, : self.n_steps]).sum(1)
        best = self.signal.new_full((n_rows,), -torch.inf)
        best.scatter_reduce_(0, row, product, "amax")
        wins = (product == best[row]).nonzero().squeeze(1)
        first = torch.full((n_rows,), d_sae, device=row.device)
        first.scatter_reduce_(0, row[wins], latent[wins], "amin")
        first = torch.where(first == d_sae, 0, first)
        chosen = wins[latent[wins] == first[row[wins]]]
        signal_product = self.signal.new_zeros(n_rows)
        signal_product[row[chosen]] = whole[chosen]
        active_products = self.signal.new_zeros(n_rows, self.n_steps)
        active_products[row[chosen]] = others[chosen]
        unclear = candidates.unclear
        if bool(unclear.any()):
            strongest, best[unclear] = self._search_all(unclear, taken)
            first[unclear] = strongest
            which = unclear.nonzero().flatten()
            signal_product[which] = paired_products(self.signal, latents, which, strongest)
            slots = self.latent[:n_rows, : self.n_steps][unclear]
            active_products[unclear] = self._inner_products(strongest, slots)
        return Strongest(first, best, signal_product, active_products)

    def _search_all(self, rows: Bool[Tensor, " n_rows"], taken: SparseCodes | None) -> list[Tensor]:
        n_rows, latents = rows.shape[0], self._inner_products.latents
        residual = self.signal[:n_rows][rows]
        if self.n_steps:
            weight = self.weight[:n_rows, : self.n_steps][rows]
            gathered = self._inner_products.gathered(self.latent[:n_rows, : self.n_steps][rows])
            explained = [(weight[part, None] @ block).squeeze(1) for part, block in gathered]
            residual = residual - torch.cat(explained)
        blocks = latents.split(BLOCK_ROWS)
        product = torch.cat([residual @ block.double().T for block in blocks], dim=1)
        if taken is not None:
            product[taken.to_dense()[rows] != 0] = -torch.inf
        best, latent = product.max(1)
        return [latent, best]

    def step(self, strongest: Strongest) -> bool:
        """Take one step of the first rows, along their active latents and the strongest one.

        Returns:
            Whether any row can go on.
        """
        n_rows, slot = strongest.latent.shape[0], self.n_steps
        self.n_steps += 1
        going = self.going[:n_rows] & (strongest.product > self._smallest_product[:n_rows])
        latent, weight = self.latent[:n_rows, : slot + 1], self.weight[:n_rows, : slot + 1]
        active = weight != 0
        known = (active & (latent == strongest.latent.unsqueeze(1))).any(1)
        active[:, slot] = going & ~known
        latent[:, slot] = torch.where(active[:, slot], strongest.latent, 0)
        self._gram[:n_rows, slot, :slot] = strongest.active_products
        self._gram[:n_rows, :slot, slot] = strongest.active_products
        self._gram[:n_rows, slot, slot] = self._latent_squares[strongest.latent]
        self._signal_product[:n_rows, slot] = strongest.signal_product
        size, direction = self._step_along(active)
        going &= size > 0
        self.going[:n_rows] = going
        size = torch.where(going, size, 0.0)
        self.weight[:n_rows, : slot + 1] = (weight + size.unsqueeze(1) * direction).clamp(min=0)
        return bool(going.any())

    def _step_along(self, active: Bool[Tensor, "n_rows slots"]) -> tuple[Tensor, Tensor]:
        """Length of each row's step, 0 where there is none to take, and its direction."""
        n_rows, slots = active.shape
        gram = self._gram[:n_rows, :slots, :slots]
        weight = self.weight[:n_rows, :slots]
        product = self._signal_product[:n_rows, :slots] - _times(gram, weight)
        direction = torch.where(active, product, 0.0)
        square = (direction * _times(gram, direction)).sum(1)
        enough = square > self._smallest[:n_rows]
        length = direction.square().sum(1) / torch.where(enough, square, 1.0)
        return torch.where(enough, length, 0.0), direction

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, latent and weight of every positive weight."""
        row, slot = (self.weight > 0).nonzero(as_tuple=True)
        return row, self.latent[row, slot], self.weight[row, slot]


def _times(matrices: Float[Tensor, "rows k k"], vectors: Float[Tensor, "rows k"]) -> Tensor:
    return torch.bmm(matrices, vectors.unsqueeze(2)).squeeze(2)
