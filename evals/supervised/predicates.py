"""Test 3's predicates of a prompt, and each latent's F1 against them and against their unions.

A family holds one predicate per value: "io is Mary", "s is male", "io is Mary and pos is ABB". Each
prompt satisfies as many of its predicates as the family has columns, at most: one for a family of
exclusive values, two for "the name is in the sentence". A latent is on where its code is positive.
Source: Makelov, Lange & Nanda, arXiv 2405.08366, A.2 and A.12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.sparse import SparseCodes

FEW_VALUES = 4
"""Attributes with at most so many values are intersected with the others."""
ENTRIES_AT_ONCE = 1 << 23


@dataclass(frozen=True, eq=False)
class PredicateFamily:
    """Predicates that differ in one value."""

    name: str
    """In words, such as "io is … and pos is ABB"."""
    kind: str
    """`value`, `intersection`, `either` (one of several attributes has the value) or `group`."""
    values: tuple[str, ...]
    """What takes the place of "…"."""
    holds: Int[Tensor, "prompts columns"]
    """Which values hold at each prompt; −1: none. No value is named twice in a row."""

    @property
    def exclusive(self) -> bool:
        """Whether at most one of its predicates holds at a prompt."""
        return self.holds.shape[1] == 1

    def sizes(self) -> Int[Tensor, " values"]:
        """At how many prompts each predicate holds."""
        holding = self.holds[self.holds >= 0]
        return torch.bincount(holding, minlength=len(self.values))


def families_of(
    labels: Mapping[str, Int[Tensor, " prompts"]],
    values: Mapping[str, Sequence[str]],
    groups: Mapping[str, Mapping[str, Mapping[str, str]]] | None = None,
) -> list[PredicateFamily]:
    """Every family that a task's attributes give.

    All values of each attribute; their intersections with the values of each attribute that has
    few; where attributes share their values, "one of them is …"; and the given coarse groups.

    Args:
        labels: attribute -> index of its value at each prompt, −1 where it has none.
        values: attribute -> its values in words.
        groups: attribute -> name of a grouping, such as "gender" -> value -> its group.
    """
    families = [
        PredicateFamily(f"{name} is …", "value", tuple(map(str, values[name])), label.unsqueeze(1))
        for name, label in labels.items()
    ]
    for name, label in labels.items():
        for second_name, second in labels.items():
            if second_name == name or not 2 <= len(values[second_name]) <= FEW_VALUES:
                continue
            if len(values[name]) <= FEW_VALUES and name > second_name:
                continue
            families += [
                PredicateFamily(
                    f"{name} is … and {second_name} is {word}",
                    "intersection",
                    tuple(map(str, values[name])),
                    torch.where(second == index, label, -1).unsqueeze(1),
                )
                for index, word in enumerate(values[second_name])
            ]
    families += _either(labels, values)
    for name, groupings in (groups or {}).items():
        for grouping, group_of in groupings.items():
            words = tuple(dict.fromkeys(group_of.values()))
            index = [words.index(group_of[v]) if v in group_of else -1 for v in values[name]]
            # The last entry is what −1, no value, finds.
            holding = torch.tensor([*index, -1])[labels[name]]
            families.append(
                PredicateFamily(f"{name} has {grouping} …", "group", words, holding.unsqueeze(1))
            )
    return families


def _either(
    labels: Mapping[str, Tensor], values: Mapping[str, Sequence[str]]
) -> list[PredicateFamily]:
    sharing: dict[tuple[str, ...], list[str]] = {}
    for name in labels:
        sharing.setdefault(tuple(map(str, values[name])), []).append(name)
    families = []
    for words, names in sharing.items():
        if len(names) < 2 or len(words) <= FEW_VALUES:
            continue
        holds = torch.stack([labels[name] for name in names], dim=1)
        for index in range(1, len(names)):
            repeats = (holds[:, :index] == holds[:, index : index + 1]).any(1)
            holds[:, index] = torch.where(repeats, -1, holds[:, index])
        families.append(PredicateFamily(f"{' or '.join(names)} is …", "either", words, holds))
    return families


def on_pairs(codes: SparseCodes) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Row and latent of every positive code."""
    positive = codes.value > 0
    return codes.pair_rows()[positive], codes.latent[positive]


def overlaps(
    row: Int[Tensor, " pairs"], latent: Int[Tensor, " pairs"], d_sae: int, family: PredicateFamily
) -> Int[Tensor, "d_sae values"]:
    """At how many prompts each latent is on and each predicate holds."""
    n_values = len(family.values)
    holding = family.holds[row]
    cell = (latent.unsqueeze(1) * n_values + holding)[holding >= 0]
    return torch.bincount(cell, minlength=d_sae * n_values).reshape(d_sae, n_values)


def f1_scores(
    overlap: Int[Tensor, "d_sae values"],
    n_on: Int[Tensor, " d_sae"],
    sizes: Int[Tensor, " values"],
) -> Float[Tensor, "d_sae values"]:
    """2·overlap / (on + size), the harmonic mean of precision and recall; 0 where both are 0."""
    total = n_on.unsqueeze(1) + sizes.unsqueeze(0)
    return torch.where(total > 0, 2 * overlap.double() / total.clamp_min(1), 0.0)


@dataclass(frozen=True, eq=False)
class BestUnion:
    """Each latent's best union of a family's predicates, of those that match it best singly."""

    f1: Float[Tensor, " d_sae"]
    n_values: Int[Tensor, " d_sae"]
    """Predicates in the best union."""
    order: Int[Tensor, "d_sae ranks"]
    """Values by falling F1; the union is of the first `n_values`."""


def best_unions(
    family: PredicateFamily,
    row: Int[Tensor, " pairs"],
    latent: Int[Tensor, " pairs"],
    n_on: Int[Tensor, " d_sae"],
    most_values: int,
) -> BestUnion:
    """Try the union of the 1, 2 … `most_values` best predicates of each latent, keep the best.

    F1 is not monotone in their number. All values together are never tried: they hold everywhere,
    so any latent that is nearly always on would match them. A union of exclusive predicates has the
    sum of their sizes; of others, prompts where several hold are counted once.
    """
    d_sae = len(n_on)
    overlap, sizes = overlaps(row, latent, d_sae, family), family.sizes()
    ranks = max(1, min(most_values, len(family.values) - 1))
    scores = f1_scores(overlap, n_on, sizes)
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :ranks]
    if family.exclusive:
        both, size = overlap.gather(1, order).cumsum(1), sizes[order].cumsum(1)
    else:
        both, size = _union_counts(family, row, latent, order, d_sae)
    total = (n_on.unsqueeze(1) + size).clamp_min(1)
    best, index = (2 * both.double() / total).max(1)
    return BestUnion(best, index + 1, order)


def _union_counts(
    family: PredicateFamily, row: Tensor, latent: Tensor, order: Tensor, d_sae: int
) -> tuple[Tensor, Tensor]:
    """For unions of predicates that overlap: prompts in each and on in each, by real OR."""
    ranks, n_values = order.shape[1], len(family.values)
    # The rank of each value for each latent; a last column for "none holds".
    rank = torch.full((d_sae, n_values + 1), ranks, dtype=torch.int64)
    rank.scatter_(1, order, torch.arange(ranks).expand_as(order))
    holding = torch.where(family.holds >= 0, family.holds, n_values)
    first = rank[latent.unsqueeze(1), holding[row]].amin(1)
    cells = latent * (ranks + 1) + first
    both = torch.bincount(cells, minlength=d_sae * (ranks + 1)).reshape(d_sae, ranks + 1)
    size = torch.zeros(d_sae, ranks + 1, dtype=torch.int64)
    step = max(1, ENTRIES_AT_ONCE // max(1, holding.numel()))
    for start in range(0, d_sae, step):
        part = rank[start : start + step]
        covered = part[:, holding].amin(2)
        size[start : start + step] = size[start : start + step].scatter_add(
            1, covered, torch.ones_like(covered)
        )
    return both[:, :ranks].cumsum(1), size[:, :ranks].cumsum(1)


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
    families: tuple[PredicateFamily, ...]
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

    def usable(self) -> Bool[Tensor, " d_sae"]:
        """Live latents that are not always on."""
        return self.live() & (self.on_rate < ALWAYS_ON)

    def interpretable(self, threshold: float) -> Bool[Tensor, " d_sae"]:
        """Usable latents with an F1 of at least the threshold."""
        return self.usable() & (self.f1 >= threshold)


def interpret(
    codes: SparseCodes,
    families: Sequence[PredicateFamily],
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
    for index, family in enumerate(families):
        union = best_unions(family, row, latent, n_on, most_values)
        unions.append(union)
        better = (union.f1 > best) & (n_on > 0)
        best, which = torch.where(better, union.f1, best), torch.where(better, index, which)
    words = [""] * d_sae
    for j in (which >= 0).nonzero().flatten().tolist():
        family, union = families[int(which[j])], unions[int(which[j])]
        chosen = [family.values[v] for v in union.order[j, : int(union.n_values[j])].tolist()]
        shown, n_more = ", ".join(chosen[:VALUES_NAMED]), len(chosen) - VALUES_NAMED
        shown += f" or {n_more} others" if n_more > 0 else ""
        words[j] = family.name.replace("…", shown)
    single = dict(zip(attributes, families, strict=False))
    overlap = {name: overlaps(row, latent, d_sae, family) for name, family in single.items()}
    return Interpretations(
        f1=best,
        family=which,
        families=tuple(families),
        on_rate=n_on.double() / max(1, codes.n_rows),
        value_f1={
            name: f1_scores(overlap[name], n_on, family.sizes()) for name, family in single.items()
        },
        overlap=overlap,
        words=tuple(words),
    )


def histogram_by_kind(interpreted: Interpretations, n_bars: int = 20) -> dict[str, list[int]]:
    """Live latents, always-on ones left out, by best F1 in equal bars, for each kind of family."""
    histograms = {family.kind: [0] * n_bars for family in interpreted.families}
    bar = (interpreted.f1 * n_bars).long().clamp_max(n_bars - 1)
    for latent in interpreted.usable().nonzero().flatten().tolist():
        family = interpreted.families[int(interpreted.family[latent])]
        histograms[family.kind][int(bar[latent])] += 1
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
    codes: SparseCodes, donor: SparseCodes, moved: Bool[Tensor, " d_sae"]
) -> SparseCodes:
    """Codes with those of some latents taken of other prompts."""
    kept, taken = ~moved[codes.latent], moved[donor.latent]
    return SparseCodes.from_pairs(
        torch.cat([codes.pair_rows()[kept], donor.pair_rows()[taken]]),
        torch.cat([codes.latent[kept], donor.latent[taken]]),
        torch.cat([codes.value[kept], donor.value[taken]]),
        codes.n_rows,
        codes.d_sae,
    )
