"""What the charts of a group are drawn from, as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .scores import (
    Scores,
    fractions_for,
    mean_curve,
    share_above,
    share_at_least,
)

MOST_POINTS = 1024
COSINES = [round(0.02 * step, 2) for step in range(51)]


def group_charts(
    members: Sequence[Scores],
    runs: Sequence[str],
    floors: Sequence[Float[Tensor, " _"]],
    threshold: float,
) -> dict[str, Any]:
    """The charts about the runs of one group against one another."""
    charts: dict[str, Any] = {
        "mcs_distribution": {
            "cosine": COSINES,
            "threshold": threshold,
            "mcs": mean_curve([share_at_least(one.mcs, COSINES) for one in members]),
            "one_to_one": mean_curve([share_at_least(one.one_to_one, COSINES) for one in members]),
            "random": mean_curve([share_at_least(floor, COSINES) for floor in floors]),
            "n_runs": len(members),
        }
    }
    rankings = list(members[0].rankings)
    if rankings:
        charts = {"share_by_rank": _share_by_rank(members, rankings, threshold), **charts}
    for ranking in rankings:
        charts[f"mcs_by_{ranking}"] = _scatter(members, runs, ranking)
    return charts


def across_charts(
    against: Mapping[str, Sequence[Scores]], label: str, threshold: float
) -> dict[str, Any]:
    """The charts about one group's latents against each group, its own other runs among them.

    Args:
        against: group's label -> scores of the members against that group alone.
        label: of the group itself.
        threshold: cosine above which latents count as the same.
    """
    charts: dict[str, Any] = {
        "distribution_across": {
            "group": label,
            "cosine": COSINES,
            "curves": {
                other: mean_curve([share_at_least(one.mcs, COSINES) for one in scores])
                for other, scores in against.items()
            },
        }
    }
    first = next(iter(against.values()))[0]
    if first.rankings:
        fractions = fractions_for(len(first.latent))
        charts["share_across"] = {
            "group": label,
            "threshold": threshold,
            "fraction": fractions,
            "curves": {
                other: mean_curve(
                    [
                        share_above(one.mcs, one.order("max_activation"), threshold, fractions)
                        for one in scores
                    ]
                )
                for other, scores in against.items()
            },
        }
    return charts


def _share_by_rank(
    members: Sequence[Scores], rankings: Sequence[str], threshold: float
) -> dict[str, Any]:
    fractions = fractions_for(max(len(one.latent) for one in members))
    kinds = {"mcs": lambda one: one.mcs, "one_to_one": lambda one: one.one_to_one}
    return {
        "fraction": fractions,
        "threshold": threshold,
        "n_runs": len(members),
        "n_compared": [len(one.latent) for one in members],
        "curves": {
            ranking: {
                kind: mean_curve(
                    [
                        share_above(value(one), one.order(ranking), threshold, fractions)
                        for one in members
                    ]
                )
                for kind, value in kinds.items()
            }
            for ranking in rankings
        },
    }


def _scatter(members: Sequence[Scores], runs: Sequence[str], ranking: str) -> dict[str, Any]:
    """Latents of all runs at even distances, each run with its share of the points."""
    points: dict[str, list[Any]] = {"run": [], "latent": [], "x": [], "mcs": []}
    for one, run in zip(members, runs, strict=True):
        x = one.rankings[ranking]
        # A logarithmic axis cannot show zero, and an undefined Z-score has no place.
        places = (x > 0).nonzero().flatten()
        most = MOST_POINTS // len(members)
        if len(places) > most:
            places = places[torch.arange(most, device=places.device) * len(places) // most]
        points["run"] += [run] * len(places)
        points["latent"] += one.latent[places].tolist()
        points["x"] += [float(f"{value:.5g}") for value in x[places].tolist()]
        points["mcs"] += [float(f"{value:.5g}") for value in one.mcs[places].tolist()]
    return {**points, "ranking": ranking, "n_compared": sum(len(one.latent) for one in members)}
