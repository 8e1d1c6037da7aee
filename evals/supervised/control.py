"""Test 2's variants: every edit of the prompts' activations that is tried at a cross-section.

An edit is judged by what the model predicts when the edited activations of all sites are patched at
once. Weights and distances come with it, since they need the same codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .config import SupervisedConfig
from .contenders import Candidate, dense_chunks
from .dictionaries import SupervisedDictionary
from .edits import aware_edit, greedy_edit, weight_removed, weights
from .interpretation import Interpretations
from .material import Activations, EditedPrompts
from .sites import Site


@dataclass(eq=False)
class EditVariant:
    """One way to edit, at every site of a cross-section."""

    contender: str
    mode: str
    """`supervised`, `agnostic` or `aware`."""
    k: int | None
    """Latents that may be changed; None: one out and one in per attribute."""
    edited: dict[Site, Float[Tensor, "pairs _"]] = field(default_factory=dict)
    """What is patched."""
    weight: list[Float[Tensor, " pairs"]] = field(default_factory=list)
    """Per site, the weight removed; NaN where weights are undefined."""
    distance: list[Float[Tensor, " pairs"]] = field(default_factory=list)
    """Per site, the distance left over the distance before."""

    @property
    def name(self) -> str:
        """Key of its outcome."""
        return f"{self.contender}|{self.mode}|{self.k}"

    def add(
        self, site: Site, start: Tensor, target: Tensor, edited: Tensor, weight: Tensor
    ) -> None:
        """Take in the edit of one site."""
        self.edited[site] = edited
        self.weight.append(weight)
        gap = (target - start).norm(dim=1)
        self.distance.append(torch.where(gap > 0, (target - edited).norm(dim=1) / gap, torch.nan))


def supervised_edit(
    name: str,
    dictionaries: Mapping[Site, SupervisedDictionary],
    sites: Sequence[Site],
    start: Activations,
    pairs: EditedPrompts,
) -> EditVariant:
    """The closed-form edit of a supervised dictionary: one feature out, one in per attribute."""
    before = [one.labels for one in pairs.prompts]
    after = [one.labels for one in pairs.targets]
    variant = EditVariant(name, "supervised", None)
    for site in sites:
        dictionary, rows = dictionaries[site], start[site][pairs.rows]
        codes, new = dictionary.codes(before), dictionary.codes(after)
        share = weights(codes, dictionary.W_dec)
        removed = torch.where((codes != 0) & (new == 0), share, 0.0).sum(1)
        edited = dictionary.edit(rows, before, after)
        variant.add(site, rows, pairs.target_activations[site], edited, removed)
    return variant


def candidate_edits(
    candidate: Candidate,
    sites: Sequence[Site],
    start: Activations,
    pairs: EditedPrompts,
    interpretations: Mapping[Site, Interpretations],
    labels: Mapping[str, tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]],
    config: SupervisedConfig,
) -> list[EditVariant]:
    """The greedy edits with every k, and the edits by interpretation with the k that fit.

    Args:
        interpretations: per site.
        labels: attribute -> index of its value at the prompts and at the counterfactuals, of those
            that differ.
    """
    agnostic = [EditVariant(candidate.name, "agnostic", k) for k in config.k]
    aware = [EditVariant(candidate.name, "aware", k) for k in config.k if _each(k, len(labels))]
    for site in sites:
        rows, target = start[site][pairs.rows], pairs.target_activations[site]
        parts = _edit_site(candidate, site, rows, target, interpretations[site], labels, config)
        for variant in (*agnostic, *aware):
            edited, removed = parts[variant.name]
            variant.add(site, rows, target, edited, removed)
    return [*agnostic, *aware]


def _edit_site(
    candidate: Candidate,
    site: Site,
    rows: Tensor,
    target: Tensor,
    found: Interpretations,
    labels: Mapping[str, tuple[Tensor, Tensor]],
    config: SupervisedConfig,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Edited activations and removed weight, by the name of the variant."""
    W_dec = candidate.W_dec(site)
    scores = [found.value_f1[name].float() for name in labels]
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    both = zip(
        dense_chunks(candidate.encode(site, rows)),
        dense_chunks(candidate.encode(site, target)),
        strict=True,
    )
    for (chunk, codes), (_, new) in both:
        share = weights(codes, W_dec)
        steps = greedy_edit(
            rows[chunk], target[chunk], codes, new, W_dec, max(config.k), config.greedy
        )
        removed = weight_removed(share, steps)
        for k in config.k:
            name = EditVariant(candidate.name, "agnostic", k).name
            edited = steps.first(k).apply(rows[chunk], W_dec)
            parts.setdefault(name, []).append((edited, removed[:, k - 1]))
        for k in config.k:
            each = _each(k, len(labels))
            if not each:
                continue
            out, into = aware_edit(
                codes,
                new,
                scores,
                [before[chunk] for before, _ in labels.values()],
                [after[chunk] for _, after in labels.values()],
                each,
                active_only=config.aware_active_only,
            )
            edited = rows[chunk] + (into - out) @ W_dec
            taken = torch.where(out != 0, share, 0.0).sum(1)
            taken = taken.masked_fill(share.isnan().any(1), torch.nan)
            name = EditVariant(candidate.name, "aware", k).name
            parts.setdefault(name, []).append((edited, taken))
    return {
        name: (torch.cat([one for one, _ in found]), torch.cat([one for _, one in found]))
        for name, found in parts.items()
    }


def _each(k: int, n_attributes: int) -> int:
    """Latents out, and latents in, per attribute when k change in all; 0 where k does not fit."""
    each, rest = divmod(k, 2 * max(1, n_attributes))
    return 0 if rest else each
