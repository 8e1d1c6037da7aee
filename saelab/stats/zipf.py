"""Zipf's law over ranks: shares, budgets with an exact sum, and the fit to measured densities.

With rank r = 1 for the most frequent latent, the share of rank r is proportional to (r + q)^(−s):
exponent s, offset q. s = 0 is the uniform law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError

FIT_OFFSETS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
FIT_HEAD = (0.01, 0.7)
"""Ranks that a fit uses, as shares of all: below, the law holds; the tail is what it predicts."""


def zipf_shares(n: int, *, exponent: float, offset: float) -> Float[Tensor, " n"]:
    """The share of each rank, float64, summing to one."""
    # In logarithms: a high power of a large rank would underflow.
    return torch.softmax(_log_law(n, exponent, offset), 0)


def _log_law(n: int, exponent: float, offset: float) -> Float[Tensor, " n"]:
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return -exponent * (ranks + offset).log()


def zipf_budgets(
    n: int, total: int, *, exponent: float, offset: float, smallest: int, largest: int
) -> Int[Tensor, " n"]:
    """Whole numbers that follow the law by rank, within limits, with exactly this sum.

    The scale that meets the sum under the limits is found by bisection; what is lost in rounding
    down goes to the largest remainders.

    Args:
        exponent: of the law; 0 gives equal budgets.
        offset: of the law.

    Raises:
        ConfigError: no budgets within the limits have this sum.
    """
    if not n * smallest <= total <= n * largest:
        raise ConfigError(
            f"budgets of {n} latents between {smallest} and {largest} cannot sum to {total}: the "
            f"sum must lie in {n * smallest} to {n * largest}"
        )
    # In logarithms throughout: shares of a steep law underflow to zero.
    shares = torch.log_softmax(_log_law(n, exponent, offset), 0)
    low = math.log(max(smallest, 1e-9)) - float(shares.max())
    high = math.log(max(largest, 1e-9)) - float(shares.min())
    for _ in range(100):
        middle = (low + high) / 2
        if float((middle + shares).exp().clamp(smallest, largest).sum()) < total:
            low = middle
        else:
            high = middle
    # From below, so that rounding down can never exceed the sum.
    wanted = (low + shares).exp().clamp(smallest, largest)
    budgets = wanted.floor().long()
    missing = total - int(budgets.sum())
    room = budgets < largest
    while missing > 0:
        remainders = torch.where(room, wanted - budgets, -1.0)
        chosen = torch.sort(remainders, descending=True, stable=True).indices
        chosen = chosen[: min(missing, int(room.sum()))]
        budgets[chosen] += 1
        missing -= len(chosen)
        room = budgets < largest
    return budgets


@dataclass(frozen=True, kw_only=True)
class ZipfFit:
    """A law fitted to densities: log density = log_scale − exponent · log(rank + offset)."""

    exponent: float
    offset: float
    log_scale: float
    r_squared: float
    """Share of the variance of log density over the fitted ranks that the law explains."""
    tail_gap: float
    """Log of the law's density over the measured one at the last rank that fired at all."""

    def densities(self, n: int) -> Float[Tensor, " n"]:
        """The law's density of ranks 1 to n."""
        return (self.log_scale + _log_law(n, self.exponent, self.offset)).exp()


def fit_zipf(density: Float[Tensor, " d_sae"]) -> ZipfFit | None:
    """Fit the law by least squares of log density on log(rank + offset), over the head of ranks.

    Offsets come from a grid. Only ranks 1 % to 70 % of those that fired are used: the law is known
    to miss the tail, and the tail is what it is then held against.

    Returns:
        The fit; None where fewer than 10 latents fired or all fired equally often.
    """
    fired = density[density > 0].double().sort(descending=True).values
    first, last = int(FIT_HEAD[0] * len(fired)), int(FIT_HEAD[1] * len(fired))
    if len(fired) < 10 or last - first < 5:
        return None
    ranks = torch.arange(1, len(fired) + 1, dtype=torch.float64, device=fired.device)
    y = fired[first:last].log()
    deviation = float((y - y.mean()).square().sum())
    if deviation <= 1e-12 * len(y):
        return None
    fits: list[tuple[float, float, float, float]] = []
    for offset in FIT_OFFSETS:
        x = (ranks[first:last] + offset).log()
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
        scale = float(y.mean() - slope * x.mean())
        fits.append((float((y - scale - slope * x).square().sum()), offset, -slope, scale))
    squared, offset, exponent, scale = min(fits)
    at_end = scale - exponent * float((ranks[-1] + offset).log())
    return ZipfFit(
        exponent=exponent,
        offset=offset,
        log_scale=scale,
        r_squared=1 - squared / deviation,
        tail_gap=at_end - float(fired[-1].log()),
    )
