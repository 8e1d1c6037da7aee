"""From comparisons to each latent's consistency, and to curves over the most active latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.stats.cosines import Directions, nearest, random_directions

from .activity import Activity
from .compare import Comparison

FLOOR_DIRECTIONS = 1024
CURVE_POINTS = 48


@dataclass(frozen=True, eq=False)
class Scores:
    """One dictionary against several others; float64, one entry per compared latent."""

    latent: Int[Tensor, " alive"]
    """Which latents they are."""
    mcs: Float[Tensor, " alive"]
    """Mean over the others of the largest cosine with one of their latents."""
    one_to_one: Float[Tensor, " alive"]
    """Mean over the others of the cosine with the one-to-one partner; 0 where there is none."""
    mutual: Float[Tensor, " alive"]
    """Share of the others where the nearest latent's nearest is in turn this one."""
    rankings: dict[str, Float[Tensor, " alive"]]
    """What the latents are ranked by, by name; empty where activity was not measured."""

    def order(self, ranking: str) -> Int[Tensor, " alive"]:
        """Places of the latents, the highest first; undefined values come last."""
        return self.rankings[ranking].nan_to_num(nan=-torch.inf).argsort(descending=True)


def scores_of(
    directions: Directions, comparisons: Sequence[Comparison], activity: Activity | None
) -> Scores:
    """Average one dictionary's comparisons with others; at least one is needed."""
    rankings = {} if activity is None else activity.rankings()
    return Scores(
        latent=directions.latent,
        mcs=_mean([one.cosine for one in comparisons]),
        one_to_one=_mean([one.partner_cosine.nan_to_num(nan=0.0) for one in comparisons]),
        mutual=_mean([one.mutual.double() for one in comparisons]),
        rankings={name: values[directions.latent] for name, values in rankings.items()},
    )


def floor_of(
    directions: Directions, others: Sequence[Directions], seed: int
) -> Float[Tensor, " drawn"]:
    """MCS of random unit directions, at most as many as there are latents: what chance gives."""
    count = min(FLOOR_DIRECTIONS, len(directions.latent))
    drawn = random_directions(count, directions.rows.shape[1], seed).to(directions.rows)
    return _mean([nearest(drawn, other.rows)[0].double() for other in others])


def n_top(fraction: float, n_alive: int) -> int:
    """How many latents a fraction of the alive ones is: rounded, at least one."""
    return min(max(round(fraction * n_alive), 1), n_alive)


def fractions_for(n_alive: int) -> list[float]:
    """Fractions for a curve, equal in log from one latent to all."""
    exponents = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64)
    counts = sorted({round(n_alive**exponent) for exponent in exponents.tolist()})
    return [count / n_alive for count in counts]


def share_above(
    values: Float[Tensor, " alive"],
    order: Int[Tensor, " alive"],
    threshold: float,
    fractions: Sequence[float],
) -> list[float]:
    """Share of values above the threshold among the first latents of an order, per fraction."""
    above = (values[order] > threshold).double().cumsum(0)
    tops = [n_top(fraction, len(values)) for fraction in fractions]
    return [float(above[top - 1]) / top for top in tops]


def share_at_least(values: Float[Tensor, " n"], cosines: Sequence[float]) -> list[float]:
    """Share of values at or above each cosine."""
    ordered = values.sort().values
    edges = torch.tensor(cosines, dtype=values.dtype, device=values.device)
    below = torch.searchsorted(ordered, edges)
    return (1 - below.double() / len(values)).tolist()


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several curves, point by point."""
    return [sum(points) / len(points) for points in zip(*curves, strict=True)]


def values_of(
    scores: Scores, floor: Float[Tensor, " drawn"], threshold: float, top_fraction: float
) -> Mapping[str, float | int]:
    """Every number of the suite for one dictionary, by name."""
    above = (scores.mcs > threshold).double()
    paired = (scores.one_to_one > threshold).double()
    values: dict[str, float | int] = {
        "mcs_mean": float(scores.mcs.mean()),
        "mcs_median": float(scores.mcs.quantile(0.5)),
        "mcs_share": float(above.mean()),
        "one_to_one_mean": float(scores.one_to_one.mean()),
        "one_to_one_share": float(paired.mean()),
        "mutual_share": float(scores.mutual.mean()),
        "mcs_random": float(floor.mean()),
        "n_compared": len(scores.latent),
    }
    for ranking in scores.rankings:
        top = scores.order(ranking)[: n_top(top_fraction, len(scores.latent))]
        values[f"mcs_share_top_{ranking}"] = float(above[top].mean())
        values[f"one_to_one_share_top_{ranking}"] = float(paired[top].mean())
    return values


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean(dim=0)
