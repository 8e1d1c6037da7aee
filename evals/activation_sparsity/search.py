"""The searches: how many small contributions can go until an error, or perplexity, has grown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import root_scalar
from torch import Tensor

LEVELS = 32
"""Thresholds of which a layer's error is known."""
XTOL = 2e-3
"""How exactly a search finds where perplexity has risen as far as it may."""


def smallest(
    contributions: Float[Tensor, " pairs"],
    share: float,
    row: Int[Tensor, " pairs"] | None = None,
) -> Bool[Tensor, " pairs"]:
    """Which pairs are among the given share of smallest contributions.

    Args:
        share: of all pairs, rounded.
        row: the row of each pair, in order: the share is then of each row's pairs, rounded.
    """
    order = contributions.argsort(stable=True)
    chosen = torch.zeros_like(contributions, dtype=torch.bool)
    if row is None:
        chosen[order[: round(share * len(order))]] = True
        return chosen
    order = order[row[order].argsort(stable=True)]
    counts = torch.bincount(row, minlength=1)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    chosen[order] = rank < (share * counts).round()[row]
    return chosen


def largest_within(rise: Callable[[float], float], limit: float) -> float:
    """The value in [0, 1] at which a rise from nothing reaches a limit; 1 where it never does.

    Args:
        rise: grows from 0 at 0, on the whole; expensive.
        limit: above 0.
    """
    known = {0.0: 0.0}

    def beyond(at: float) -> float:
        if at not in known:
            known[at] = rise(at)
        return known[at] - limit

    if beyond(1.0) <= 0:
        return 1.0
    root_scalar(beyond, bracket=(0.0, 1.0), method="brentq", xtol=XTOL)
    # The last point tried may lie on the wrong side of the limit.
    return max(at for at, value in known.items() if value <= limit)


@dataclass(frozen=True, eq=False)
class LayerErrors:
    """CETT of one layer's MLP by threshold: the norm of what neurons below it would have added,
    over that of the whole output, mean over tokens (Luo et al., 2024, arXiv 2411.02335)."""

    thresholds: Float[np.ndarray, " levels"]
    """Contributions below which neurons are dropped, rising."""
    cett: Float[np.ndarray, " levels"]
    """The error with each."""

    @staticmethod
    def of(
        neurons: Float[Tensor, "tokens d_mlp"], rows: Float[Tensor, "d_mlp d_model"]
    ) -> LayerErrors:
        """Measure a layer.

        Args:
            neurons: what the MLP's last layer reads.
            rows: what it writes for each of them.
        """
        contributions = neurons.abs() * rows.norm(dim=1)
        ordered = contributions.flatten().sort().values
        # Denser towards the end, where errors are large.
        shares = 1 - torch.linspace(1, 0, LEVELS, dtype=torch.float64) ** 2
        index = (shares * (len(ordered) - 1)).long()
        thresholds = ordered[index]
        size = (neurons @ rows).norm(dim=1).clamp(min=1e-30)
        cett = [
            float((((neurons * (contributions < at)) @ rows).norm(dim=1) / size).mean())
            for at in thresholds
        ]
        return LayerErrors(thresholds.double().cpu().numpy(), np.maximum.accumulate(np.array(cett)))

    def threshold(self, cett: float) -> float:
        """The threshold at which the error is reached, between the levels measured."""
        if cett >= self.cett[-1]:
            return math.inf if cett >= 1 else float(self.thresholds[-1])
        return float(np.interp(cett, self.cett, self.thresholds))


def top_share(scores: Float[Tensor, "*tokens d_mlp"], kept: float) -> Bool[Tensor, "*tokens d_mlp"]:
    """The given share of each token's entries with the largest scores."""
    chosen = scores.topk(max(1, round(kept * scores.shape[-1])), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)
