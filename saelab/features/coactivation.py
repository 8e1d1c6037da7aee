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

from .shards import Pairs, ShardPairs, Shards

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

    first_row: int
    """The first row these are of."""
    pointer: Integer[np.ndarray, " rows_plus_one"]
    """Block with which each row begins."""
    latent: Integer[np.ndarray, "blocks block"]
    """Latents."""
    value: Float[np.ndarray, "blocks block"]
    """Codes, float32."""


def row_codes(shards: Shards, first: int, end: int) -> RowCodes:
    """The codes of the shards from `first` to before `end`."""
    found = [_shard_codes(shard, shards.d_sae) for shard in shards.every_shard(first, end)]
    blocks = np.concatenate([part.pointer[1:] - part.pointer[:-1] for part in found])
    return RowCodes(
        found[0].first_row,
        np.concatenate([[0], np.cumsum(blocks)]),
        np.concatenate([part.latent for part in found]),
        np.concatenate([part.value for part in found]),
    )


def _shard_codes(shard: ShardPairs, d_sae: int) -> RowCodes:
    local = shard.pairs.row.astype(np.int64) - shard.first_row
    order = np.sort((local << 32) | np.arange(len(local))) & 0xFFFFFFFF
    counts = np.bincount(local, minlength=shard.n_rows)
    pointer = np.concatenate([[0], np.cumsum(-(-counts // BLOCK))])
    # Each code moves by what the rows before it were filled up with.
    before = np.cumsum(counts) - counts
    places = np.arange(len(local)) + np.repeat(pointer[:-1] * BLOCK - before, counts)
    latent = np.full(pointer[-1] * BLOCK, d_sae)
    value = np.zeros(pointer[-1] * BLOCK, np.float32)
    latent[places] = shard.pairs.latents()[order]
    value[places] = shard.pairs.activation[order]
    latents, values = (
        rearrange(x, "(block slot) -> block slot", slot=BLOCK) for x in (latent, value)
    )
    return RowCodes(shard.first_row, pointer, latents, values)


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


class TogetherSums:
    """Rows with both and Σ a_f·a_g of one latent f with every latent g.

    Args:
        pairs: of a range of latents, f among them.
        codes: of the rows to sum over.
        d_sae: number of latents.
    """

    def __init__(self, pairs: Pairs, codes: RowCodes, d_sae: int):
        self._pairs = pairs
        self._codes = codes
        self._d_sae = d_sae
        self._end_row = codes.first_row + len(codes.pointer) - 1

    def of(self, latent: int) -> tuple[Integer[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
        """Counts and sums of products for the latent at this place of the range."""
        start, end = self._pairs.pointer[latent], self._pairs.pointer[latent + 1]
        row = self._pairs.row[start:end]
        first, last = np.searchsorted(row, [self._codes.first_row, self._end_row])
        rows = row[first:last].astype(np.int64) - self._codes.first_row
        activation = self._pairs.activation[start:end][first:last].astype(np.float64)
        begins = self._codes.pointer[rows]
        lengths = self._codes.pointer[rows + 1] - begins
        # One bin more than there are latents, for what fills up the blocks.
        both = np.zeros(self._d_sae + 1, np.int64)
        products = np.zeros(self._d_sae + 1)
        for part in _parts(lengths):
            blocks = _blocks(begins[part], lengths[part])
            latents = self._codes.latent[blocks].reshape(-1)
            factor = np.repeat(activation[part], lengths[part])
            weights = self._codes.value[blocks] * factor[:, None]
            both += np.bincount(latents, minlength=self._d_sae + 1)
            products += np.bincount(latents, weights.reshape(-1), minlength=self._d_sae + 1)
        return both[:-1], products[:-1]


def _parts(lengths: Integer[np.ndarray, " rows"]) -> Iterator[slice]:
    """Slices of the rows that hold about `GATHERED_BLOCKS` blocks each."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + GATHERED_BLOCKS, side="right"))
        end = max(end, start + 1)
        yield slice(start, end)
        start = end


def _blocks(
    begins: Integer[np.ndarray, " rows"], lengths: Integer[np.ndarray, " rows"]
) -> Integer[np.ndarray, " blocks"]:
    """Every block of the rows, row by row."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - lengths), lengths)


def jaccard(
    both: Integer[np.ndarray, " d_sae"], latent: int, sums: LatentSums
) -> Float[np.ndarray, " d_sae"]:
    """Rows with both over rows with either; 0 where neither is ever active."""
    either = sums.count[latent] + sums.count - both
    return both / np.maximum(either, 1)


def pearson(
    products: Float[np.ndarray, " d_sae"], latent: int, sums: LatentSums
) -> Float[np.ndarray, " d_sae"]:
    """Correlation of the codes over all rows, zeros included; 0 where one never varies."""
    n = float(sums.n_tokens)
    covariance = n * products - sums.total[latent] * sums.total
    spread = n * sums.squares - sums.total**2
    # Rounding may leave a constant code a spread of some last digits.
    varies = spread > 1e-12 * n * sums.squares
    if not varies[latent]:
        return np.zeros(len(products))
    scale = np.sqrt(np.where(varies, spread, np.inf) * spread[latent])
    return np.clip(covariance / scale, -1.0, 1.0)


def strongest(
    values: Float[np.ndarray, " d_sae"],
    both: Integer[np.ndarray, " d_sae"],
    latent: int,
    n: int,
) -> Integer[np.ndarray, " chosen"]:
    """Latents of the highest values among those ever active together with this one, falling."""
    partners = both > 0
    partners[latent] = False
    partners &= values > 0
    candidates = np.flatnonzero(partners)
    found = values[candidates]
    if len(candidates) > n:
        keep = np.argpartition(-found, n)[:n]
        candidates, found = candidates[keep], found[keep]
    return candidates[np.lexsort((candidates, -found))]


def coactivation_arrays(
    both: Integer[np.ndarray, " d_sae"],
    products: Float[np.ndarray, " d_sae"],
    latent: int,
    sums: LatentSums,
    n: int,
) -> dict[str, np.ndarray]:
    """The arrays of table `coactivation` of one latent."""
    arrays: dict[str, np.ndarray] = {}
    measures = {"jaccard": jaccard(both, latent, sums), "pearson": pearson(products, latent, sums)}
    for name, values in measures.items():
        chosen = strongest(values, both, latent, n)
        arrays |= {
            f"{name}_feature": chosen,
            name: values[chosen],
            f"{name}_both": both[chosen],
        }
    return arrays
