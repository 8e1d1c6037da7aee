"""Entropies of what is sent: which latents fire, and how strongly, in bins of one width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_BINS = 1 << 24
"""Bins of a source; what lies beyond is put into the last."""


class BinCounts:
    """How often each source (a latent, a channel) fell into each bin; only bins that occur are
    kept, so that any number of rows can be streamed.

    Args:
        n_sources: how many there are.
    """

    def __init__(self, n_sources: int):
        self.n_sources = n_sources
        self.key = self.count = torch.zeros(0, dtype=torch.int64)

    def add(self, source: Int[Tensor, " n"], index: Int[Tensor, " n"]) -> None:
        """Count some values by the index of their bin, which may be negative."""
        inside = index.clamp(-MOST_BINS // 2, MOST_BINS // 2 - 1) + MOST_BINS // 2
        key, count = (source * MOST_BINS + inside).cpu().unique(return_counts=True)
        self._merge(torch.cat([self.key, key]), torch.cat([self.count, count]))

    def coarser(self) -> BinCounts:
        """The same with each two neighbouring bins made one."""
        wider = BinCounts(self.n_sources)
        source, inside = self.key // MOST_BINS, self.key % MOST_BINS
        index = torch.div(inside - MOST_BINS // 2, 2, rounding_mode="floor")
        wider._merge(source * MOST_BINS + index + MOST_BINS // 2, self.count)
        return wider

    def _merge(self, key: Int[Tensor, " n"], count: Int[Tensor, " n"]) -> None:
        self.key, where = key.unique(return_inverse=True)
        self.count = torch.zeros_like(self.key).index_add_(0, where, count)

    def entropies(self) -> Float[Tensor, " n_sources"]:
        """Bits to say the bin of a value of each source, float64; 0 of one without values.

        Entropy of the counts plus (bins − 1) / (2 n ln 2), by which counts of n values fall short
        of the entropy of what they were drawn from (Miller, 1955).
        """
        source, count = self.key // MOST_BINS, self.count.double()
        n, bins, within = torch.zeros(3, self.n_sources, dtype=torch.float64)
        n.index_add_(0, source, count)
        bins.index_add_(0, source, torch.ones_like(count))
        within.index_add_(0, source, count * count.log2())
        least = n.clamp(min=1)
        shortfall = (bins - 1).clamp(min=0) / (2 * least * math.log(2))
        return least.log2() - within / least + shortfall


def firing_bits(density: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Bits to say whether each latent fires: the entropy of a coin of its density."""
    p = density.double()
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)


def choose_bits(l0_histogram: Int[Tensor, " counts"], n_latents: int) -> float:
    """Bits to say how many latents of `n_latents` fire, and which, every set taken for as likely.

    Mean over rows of log2 C(n_latents, L0), and the entropy of L0.

    Args:
        l0_histogram: rows by L0, from 0 on.
    """
    share = l0_histogram.double() / l0_histogram.sum()
    k = torch.arange(len(share), dtype=torch.float64, device=share.device)
    n = torch.tensor(float(n_latents), dtype=torch.float64, device=share.device)
    inside = (n - k).clamp(min=0)
    sets = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(inside + 1)
    return float((share * sets).sum() + torch.special.entr(share).sum()) / math.log(2)


def value_at(
    target: float, errors: Sequence[float], values: Sequence[float], without: float
) -> float | None:
    """A value at the widest bins whose error is at most a target, between the widths tried.

    Args:
        target: the error that is allowed.
        errors: by width of bins, finest first.
        values: what goes with each, such as bits.
        without: the error without bins. What bins add grows with the square of their width and
            bits fall with its logarithm, so bits are linear in the logarithm of what is added.

    Returns:
        The value; of the widest bins where even these are good enough; None where not even the
        finest are.
    """
    good = [level for level, error in enumerate(errors) if error <= target]
    if not good:
        return None
    level = good[-1]
    if level + 1 == len(errors):
        return values[level]
    low, high, at = (error - without for error in (errors[level], errors[level + 1], target))
    if low > 0:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return values[level] + (at - low) / (high - low) * (values[level + 1] - values[level])
