"""Test 3: what each latent means, and whether latents with a meaning carry the task.

A latent's interpretation is the predicate or union of predicates with the highest F1 over all
families. Interpretations are made on prompts other than those that scores are computed on. Source:
Makelov, Lange & Nanda, arXiv 2405.08366, section 6 and A.12, A.13, A.16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.sparse import SparseCodes

from .predicates import Family, best_unions, f1_scores, on_pairs, overlaps

MOST_VALUES = 10
"""Predicates in a union, at most."""
ALWAYS_ON = 0.9
"""Share of prompts from which on a latent counts as always on: its F1 says nothing, since one that
is on everywhere scores 2p/(1+p) for a predicate of probability p."""
VALUES_NAMED = 3


@dataclass(frozen=True, eq=False)
class Interpretations:
    """What the latents of one dictionary at one site mean."""

    f1: Float[Tensor, " d_sae"]
    """Best F1 of each latent, 0 for one that is never on."""
    family: Int[Tensor, " d_sae"]
    """Which family that is with; −1 for a latent that is never on."""
    families: tuple[Family, ...]
    on_rate: Float[Tensor, " d_sae"]
    """Share of prompts at which the latent is on."""
    value_f1: dict[str, Float[Tensor, "d_sae _"]]
    """Attribute -> F1 for each of its single values."""
    overlap: dict[str, Int[Tensor, "d_sae _"]]
    """Attribute -> prompts at which the latent is on and the value holds."""
    words: tuple[str, ...]
    """Each latent's interpretation; "" for one that is never on."""

    def live(self) -> Bool[Tensor, " d_sae"]:
        """Latents that are on at some prompt."""
        return self.on_rate > 0

    def n_always_on(self) -> int:
        """How many latents are always on."""
        return int((self.on_rate >= ALWAYS_ON).sum())

    def interpretable(self, threshold: float) -> Bool[Tensor, " d_sae"]:
        """Latents with an F1 of at least the threshold that are not always on."""
        return self.live() & (self.f1 >= threshold) & (self.on_rate < ALWAYS_ON)


def interpret(
    codes: SparseCodes,
    families: Sequence[Family],
    attributes: Sequence[str],
    most_values: int = MOST_VALUES,
) -> Interpretations:
    """Find each latent's best predicate or union.

    Args:
        codes: of the prompts of the families.
        families: from `families_of`; the first ones are those of the attributes' single values.
        attributes: names of the attributes, in the order of those first families.
        most_values: predicates in a union at most; unions are of values of one family.
    """
    d_sae = codes.d_sae
    row, latent = on_pairs(codes)
    n_on = torch.bincount(latent, minlength=d_sae)
    best = torch.zeros(d_sae, dtype=torch.float64)
    which = torch.full((d_sae,), -1)
    unions = []
    for place, family in enumerate(families):
        found = best_unions(family, row, latent, n_on, most_values)
        unions.append(found)
        better = (found.f1 > best) & (n_on > 0)
        best, which = torch.where(better, found.f1, best), torch.where(better, place, which)
    words = [""] * d_sae
    for one in (which >= 0).nonzero().flatten().tolist():
        family, union = families[int(which[one])], unions[int(which[one])]
        chosen = union.order[one, : int(union.n_values[one])].tolist()
        words[one] = family.name.replace("…", _list([family.values[value] for value in chosen]))
    overlap = {
        name: overlaps(row, latent, d_sae, family)
        for name, family in zip(attributes, families, strict=False)
    }
    return Interpretations(
        f1=best,
        family=which,
        families=tuple(families),
        on_rate=n_on.double() / max(1, codes.n_rows),
        value_f1={
            name: f1_scores(overlap[name], n_on, family.sizes())
            for name, family in zip(attributes, families, strict=False)
        },
        overlap=overlap,
        words=tuple(words),
    )


def _list(words: Sequence[str]) -> str:
    shown = ", ".join(words[:VALUES_NAMED])
    return shown if len(words) <= VALUES_NAMED else f"{shown} or {len(words) - VALUES_NAMED} others"


def histogram_by_kind(found: Interpretations, n_bars: int = 20) -> dict[str, list[int]]:
    """Live latents, always-on ones left out, by best F1 in equal bars, for each kind of family."""
    kinds = list(dict.fromkeys(family.kind for family in found.families))
    bar = (found.f1 * n_bars).long().clamp_max(n_bars - 1)
    histograms = {}
    for kind in kinds:
        of_kind = torch.tensor([family.kind == kind for family in found.families] + [False])
        mine = of_kind[found.family] & found.live() & (found.on_rate < ALWAYS_ON)
        histograms[kind] = torch.bincount(bar[mine], minlength=n_bars).tolist()
    return histograms


def without_latents(
    activations: Float[Tensor, "rows d_in"],
    codes: Float[Tensor, "rows d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    latents: Bool[Tensor, " d_sae"],
) -> Float[Tensor, "rows d_in"]:
    """Activations with the contributions of some latents subtracted; the rest stays, error too."""
    return activations - torch.where(latents, codes, 0.0) @ W_dec


def exchanged_codes(
    codes: SparseCodes, other: SparseCodes, moved: Bool[Tensor, " d_sae"]
) -> SparseCodes:
    """Codes with those of some latents taken from other prompts."""
    kept, taken = ~moved[codes.latent], moved[other.latent]
    return SparseCodes.from_pairs(
        torch.cat([codes.pair_rows()[kept], other.pair_rows()[taken]]),
        torch.cat([codes.latent[kept], other.latent[taken]]),
        torch.cat([codes.value[kept], other.value[taken]]),
        codes.n_rows,
        codes.d_sae,
    )
