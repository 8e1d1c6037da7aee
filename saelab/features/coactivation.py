"""Which latents are active together: the sparse product AᵀA over all latents, row by row of it.

For each latent f the rows on which it is active are gathered with all their codes, and two
histograms over the latents give, for every g, the rows with both and Σ a_f·a_g in float64. No
[d_sae, d_sae] matrix exists; the text is taken in parts of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float, Integer

from .shards import ShardPairs, Shards, indices_of_runs, order_by

BLOCK = 8
"""Codes of a block: 64 bytes of latents."""
GATHERED_BLOCKS = 1 << 14
"""Blocks gathered at a time: the temporary arrays stay in cache."""


@dataclass(frozen=True, eq=False)
class RowCodes:
    """The codes of all latents, row by row, each row padded to whole blocks of `BLOCK` codes.

    Whole blocks are gathered several times as fast as single codes. What fills them up is latent
    `d_sae`, which does not exist, with code 0.
    """

    d_sae: int
    """Number of latents."""
    first_row: int
    """The first row these are of."""
    pointer: Integer[np.ndarray, " rows_plus_one"]
    """Block with which each row begins."""
    latent: Integer[np.ndarray, "blocks block"]
    """Latents."""
    value: Float[np.ndarray, "blocks block"]
    """Codes, float32."""

    def together(
        self, row: Integer[np.ndarray, " active"], activation: Float[np.ndarray, " active"]
    ) -> tuple[Integer[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
        """Of a latent f, the rows with both and Σ a_f·a_g with every latent g.

        Args:
            row: where f is active, rising; rows of other codes are left out.
            activation: a_f there.
        """
        end_row = self.first_row + len(self.pointer) - 1
        inside = slice(*np.searchsorted(row, [self.first_row, end_row]))
        rows = row[inside].astype(np.int64) - self.first_row
        activation = activation[inside].astype(np.float64)
        begins = self.pointer[rows]
        lengths = self.pointer[rows + 1] - begins
        # One bin more than there are latents, for what fills up the blocks.
        both = np.zeros(self.d_sae + 1, np.int64)
        products = np.zeros(self.d_sae + 1)
        for part in _parts(lengths):
            blocks = indices_of_runs(begins[part], lengths[part])
            latents = self.latent[blocks].reshape(-1)
            factor = np.repeat(activation[part], lengths[part])
            weights = self.value[blocks] * factor[:, None]
            both += np.bincount(latents, minlength=self.d_sae + 1)
            products += np.bincount(latents, weights.reshape(-1), minlength=self.d_sae + 1)
        return both[:-1], products[:-1]


def row_codes(shards: Shards, first: int, end: int) -> RowCodes:
    """The codes of the shards from `first` to before `end`."""
    parts = [_shard_codes(shard, shards.d_sae) for shard in shards.every_shard(first, end)]
    blocks = np.concatenate([np.diff(part.pointer) for part in parts])
    return RowCodes(
        shards.d_sae,
        parts[0].first_row,
        np.concatenate([[0], np.cumsum(blocks)]),
        np.concatenate([part.latent for part in parts]),
        np.concatenate([part.value for part in parts]),
    )


def _shard_codes(shard: ShardPairs, d_sae: int) -> RowCodes:
    local = shard.pairs.row.astype(np.int64) - shard.first_row
    order = order_by(local)
    counts = np.bincount(local, minlength=shard.n_rows)
    pointer = np.concatenate([[0], np.cumsum(-(-counts // BLOCK))])
    # Each code moves by what the rows before it were filled up with.
    before = np.cumsum(counts) - counts
    slots = np.arange(len(local)) + np.repeat(pointer[:-1] * BLOCK - before, counts)
    latent = np.full(pointer[-1] * BLOCK, d_sae)
    value = np.zeros(pointer[-1] * BLOCK, np.float32)
    latent[slots] = shard.pairs.latents()[order]
    value[slots] = shard.pairs.activation[order]
    latents, values = (
        rearrange(x, "(block slot) -> block slot", slot=BLOCK) for x in (latent, value)
    )
    return RowCodes(d_sae, shard.first_row, pointer, latents, values)


@dataclass(frozen=True, eq=False)
class LatentSums:
    """Sums of each latent's codes over all rows."""

    n_tokens: int
    """Rows, those without any code included."""
    count: Integer[np.ndarray, " d_sae"]
    """Rows on which it is active."""
    total: Float[np.ndarray, " d_sae"]
    """Σ a."""
    squares: Float[np.ndarray, " d_sae"]
    """Σ a²."""


def _parts(lengths: Integer[np.ndarray, " rows"]) -> Iterator[slice]:
    """Slices of the rows that hold about `GATHERED_BLOCKS` blocks each."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + GATHERED_BLOCKS, side="right"))
        yield slice(start, end := max(end, start + 1))
        start = end


def coactivation_arrays(
    both: Integer[np.ndarray, " d_sae"],
    products: Float[np.ndarray, " d_sae"],
    latent: int,
    sums: LatentSums,
    n: int,
) -> dict[str, np.ndarray]:
    """The arrays of table `coactivation` of one latent: the n highest of each measure, falling.

    Args:
        both: rows with this latent and each other.
        products: Σ of the products of their codes.
        latent: the latent.
        sums: of every latent.
        n: entries of each list; only latents ever active together with this one are in it.
    """
    either = sums.count[latent] + sums.count - both
    pearson = _pearson(products, latent, sums)
    arrays: dict[str, np.ndarray] = {}
    for name, values in {"jaccard": both / np.maximum(either, 1), "pearson": pearson}.items():
        partners = (both > 0) & (values > 0)
        partners[latent] = False
        chosen = np.flatnonzero(partners)
        if len(chosen) > n:
            chosen = chosen[np.argpartition(-values[chosen], n)[:n]]
        chosen = chosen[np.lexsort((chosen, -values[chosen]))]
        arrays |= {f"{name}_feature": chosen, name: values[chosen], f"{name}_both": both[chosen]}
    return arrays


def _pearson(
    products: Float[np.ndarray, " d_sae"], latent: int, sums: LatentSums
) -> Float[np.ndarray, " d_sae"]:
    """Correlation of the codes over all rows, zeros included; 0 where either never varies."""
    n = float(sums.n_tokens)
    covariance = n * products - sums.total[latent] * sums.total
    spread = n * sums.squares - sums.total**2
    # Rounding may leave a constant code a spread of some last digits.
    varies = spread > 1e-12 * n * sums.squares
    if not varies[latent]:
        return np.zeros(len(products))
    scale = np.sqrt(np.where(varies, spread, np.inf) * spread[latent])
    return np.clip(covariance / scale, -1.0, 1.0)
