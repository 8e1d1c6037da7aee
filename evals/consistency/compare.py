"""Two dictionaries side by side: each latent's nearest in the other, and its one-to-one partner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.progress import progress_bar
from saelab.stats.assignment import match_one_to_one
from saelab.stats.cosines import Directions, nearest


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


def compare(one: Directions, other: Directions) -> tuple[Comparison, Comparison]:
    """Compare two dictionaries, in both directions at once.

    Returns:
        What `one` is to `other`, and the reverse.
    """
    cosine, place, back, back_place = nearest(one.rows, other.rows)
    partner, gap = match_one_to_one(one.rows, other.rows)
    has = partner >= 0
    back_partner = torch.full_like(back_place, -1)
    back_partner[partner[has]] = has.nonzero().flatten()
    return (
        _comparison(one, other, (cosine, place, back_place), partner, gap),
        _comparison(other, one, (back, back_place, place), back_partner, gap),
    )


def compare_pairs(
    directions: Sequence[Directions], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], Comparison]:
    """Compare the listed pairs; the result has both directions of each."""
    found: dict[tuple[int, int], Comparison] = {}
    with progress_bar(len(pairs), "compare", "pairs") as bar:
        for one, other in pairs:
            found[one, other], found[other, one] = compare(directions[one], directions[other])
            bar.update(1)
    return found


def _comparison(
    one: Directions,
    other: Directions,
    found: tuple[Tensor, Tensor, Tensor],
    partner: Tensor,
    gap: float,
) -> Comparison:
    """Put what was found in terms of latents; `found` is as `nearest` gives it."""
    cosine, place, back = found
    has = partner >= 0
    partner_cosine = torch.full_like(cosine, torch.nan, dtype=torch.float64)
    pairs = one.rows[has].double() * other.rows[partner[has]].double()
    partner_cosine[has] = pairs.sum(dim=1).clamp(-1, 1)
    return Comparison(
        cosine=cosine.double().clamp(-1, 1),
        nearest=other.latent[place],
        mutual=back[place] == torch.arange(len(place), device=place.device),
        partner=torch.where(has, other.latent[partner.clamp_min(0)], -1),
        partner_cosine=partner_cosine,
        gap=gap,
    )
