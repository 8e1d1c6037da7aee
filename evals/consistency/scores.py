"""Cosines between two dictionaries, each latent's consistency, and the numbers made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.stats.assignment import match_one_to_one
from saelab.stats.cosines import Directions, nearest, paired_products, random_directions

from ..curves import n_top
from ..definitions import Definition, filled_in
from .activity import Activity

FLOOR_DIRECTIONS = 1024


@dataclass(frozen=True, eq=False)
class Comparison:
    """What one dictionary's compared latents are to another's; one entry per compared latent."""

    cosine: Float[Tensor, " alive"]
    """Largest signed cosine with a latent of the other, float64."""
    nearest: Int[Tensor, " alive"]
    """The latent of the other that it is with."""
    mutual: Bool[Tensor, " alive"]
    """Whether that latent's nearest is in turn this one."""
    partner: Int[Tensor, " alive"]
    """The one-to-one partner in the other; -1 where none was left."""
    partner_cosine: Float[Tensor, " alive"]
    """Cosine with the partner, float64; NaN where there is none."""
    gap: float
    """How far at most the mean cosine of the partners lies below that of the best assignment."""


def compare(first: Directions, second: Directions) -> tuple[Comparison, Comparison]:
    """Compare two dictionaries, in both directions at once.

    Returns:
        What `first` is to `second`, and the reverse.
    """
    cosine, index, back, back_index = nearest(first.rows, second.rows)
    partner, gap = match_one_to_one(first.rows, second.rows)
    has = partner >= 0
    back_partner = torch.full_like(back_index, -1)
    back_partner[partner[has]] = has.nonzero().flatten()
    return (
        _comparison(first, second, (cosine, index, back_index), partner, gap),
        _comparison(second, first, (back, back_index, index), back_partner, gap),
    )


def _comparison(
    side: Directions,
    target: Directions,
    nearby: tuple[Tensor, Tensor, Tensor],
    partner: Tensor,
    gap: float,
) -> Comparison:
    """From indices of compared latents to latents; `nearby` is as `nearest` gives it."""
    cosine, index, back = nearby
    has = partner >= 0
    partner_cosine = torch.full_like(cosine, torch.nan, dtype=torch.float64)
    rows = has.nonzero().flatten()
    partner_cosine[has] = paired_products(side.rows, target.rows, rows, partner[has]).clamp(-1, 1)
    return Comparison(
        cosine=cosine.double().clamp(-1, 1),
        nearest=target.latent[index],
        mutual=back[index] == torch.arange(len(index), device=index.device),
        partner=torch.where(has, target.latent[partner.clamp_min(0)], -1),
        partner_cosine=partner_cosine,
        gap=gap,
    )


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
        """Indices of the latents, the highest first; undefined values come last."""
        return self.rankings[ranking].nan_to_num(nan=-torch.inf).argsort(descending=True)


def scores_of(
    directions: Directions, comparisons: Sequence[Comparison], activity: Activity | None
) -> Scores:
    """Average one dictionary's comparisons with others; at least one is needed."""
    rankings = {} if activity is None else activity.rankings()
    return Scores(
        latent=directions.latent,
        mcs=_mean([pair.cosine for pair in comparisons]),
        one_to_one=_mean([pair.partner_cosine.nan_to_num(nan=0.0) for pair in comparisons]),
        mutual=_mean([pair.mutual.double() for pair in comparisons]),
        rankings={name: values[directions.latent] for name, values in rankings.items()},
    )


def floor_of(
    directions: Directions, others: Sequence[Directions], seed: int
) -> Float[Tensor, " drawn"]:
    """MCS of random unit directions, at most as many as there are latents: what chance gives."""
    count = min(FLOOR_DIRECTIONS, len(directions.latent))
    drawn = random_directions(count, directions.rows.shape[1], seed).to(directions.rows)
    return _mean([nearest(drawn, each.rows)[0].double() for each in others])


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean(dim=0)


def values_of(
    scores: Scores, floor: Float[Tensor, " drawn"], threshold: float, top_fraction: float
) -> dict[str, float | int]:
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


_RANKED_BY = {
    "max_activation": "max activation: the largest code on the {rows} times the norm of the "
    "latent's decoder row, in activation units",
    "z_score": "Z-score: (largest - mean) / standard deviation of the latent's pre-activation over "
    "the {rows}",
    "density": "density: the fraction of the {rows} on which its code is positive",
}
_MEANINGS = {
    "mcs_mean": "Mean MCS of the {n_compared} compared latents. MCS is a latent's largest signed "
    "cosine between its decoder row and one of another dictionary, averaged over the other "
    "dictionaries of the group ({n_others}).",
    "mcs_median": "Median MCS of the compared latents.",
    "mcs_share": "Share of the compared latents with MCS above {threshold}: found by the others "
    "too.",
    "one_to_one_mean": "Mean over compared latents and others of the cosine with the one-to-one "
    "partner; a latent without one, where the other has fewer latents, counts as 0. Partners are "
    "the assignment of largest total cosine, to within {gap} of its mean (auction algorithm), so "
    "that one latent cannot stand for two.",
    "one_to_one_share": "Share of the compared latents whose mean cosine with their one-to-one "
    "partners is above {threshold}.",
    "mutual_share": "Share, over compared latents and others, of latents whose nearest latent has "
    "this one as its nearest.",
    "mcs_random": "Mean MCS of {n_random} random unit directions against the same others: what "
    "chance gives. Seed {seed}.",
    **{
        f"mcs_share_top_{ranking}": "Of the {n_top} compared latents (a fraction of "
        f"{{top_fraction}}) highest in {words}: share with MCS above {{threshold}}."
        for ranking, words in _RANKED_BY.items()
    },
    **{
        f"one_to_one_share_top_{ranking}": f"The same latents as in mcs_share_top_{ranking}: share "
        "whose mean cosine with their one-to-one partners is above {threshold}."
        for ranking in _RANKED_BY
    },
    "n_others": "Other dictionaries of the group.",
    "n_compared": "{compared}",
}


def consistency_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every number with the facts of a run filled in."""
    undirected = ("mcs_random", "n_others", "n_compared")
    return filled_in(
        {"Numbers": _MEANINGS},
        facts,
        units={"n_others": "dictionaries", "n_compared": "latents"},
        better={name: "higher" for name in _MEANINGS if name not in undirected},
    )
