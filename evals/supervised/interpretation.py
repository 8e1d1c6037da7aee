"""Test 3 and the occlusion measures at a cross-section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.stats.bootstrap import UNDEFINED

from .approximation import ablation_matters, necessity, sufficiency
from .contenders import Candidate, dense_chunks
from .predicates import ALWAYS_ON, Interpretations, interpret, without_latents
from .section import ABLATED, CLEAN, Section
from .sites import Outcome, PromptSite

PURITY = 0.95
"""Share of the prompts with the latent on at which the value must hold."""
PARTIAL_RECALL = 0.5
"""Share of the prompts with the value below which a latent shows only part of it."""


@dataclass(frozen=True, kw_only=True)
class AttributeUse:
    """What the latents of a dictionary make of one attribute."""

    n_values: int
    """Values that occur in the prompts."""
    n_found: dict[str, int]
    """Threshold -> values for which some latent has at least this F1 (always-on ones left out)."""
    n_splinters: int
    """Live latents on at least 95 % purely where one value holds, with a recall below 0.5."""
    missing_f1: float
    """1 − the highest F1 of any latent for any value of the attribute."""


def attribute_use(
    found: Interpretations,
    attribute: str,
    sizes: Int[Tensor, " values"],
    thresholds: tuple[float, ...],
) -> AttributeUse:
    """Measure one attribute from a dictionary's interpretations.

    Args:
        found: the interpretations.
        attribute: its name.
        sizes: prompts with each value.
        thresholds: F1 from which a value counts as found.
    """
    usable = (found.on_rate < ALWAYS_ON).unsqueeze(1)
    f1 = torch.where(usable, found.value_f1[attribute], 0.0)
    overlap = found.overlap[attribute].double()
    n_on = (found.on_rate * int(sizes.sum())).round().clamp_min(1).unsqueeze(1)
    pure = (overlap / n_on >= PURITY) & (overlap > 0)
    partial = overlap / sizes.clamp_min(1) < PARTIAL_RECALL
    best = f1.amax(0)
    return AttributeUse(
        n_values=int((sizes > 0).sum()),
        n_found={f"{limit:g}": int((best >= limit).sum()) for limit in thresholds},
        n_splinters=int((pure & partial).any(1).sum()),
        missing_f1=1 - float(f1.max()),
    )


def interpret_candidate(
    section: Section, candidate: Candidate
) -> dict[PromptSite, Interpretations]:
    """Interpret the latents at every site, and count what they show."""
    attributes = list(section.task.attributes)
    found = {}
    for site in section.sites:
        codes = candidate.encode(site, section.material.interpret_activations[site])
        found[site] = interpret(
            codes, section.material.families, attributes, section.config.union_values
        )
        _count(section, candidate, site, found[site])
    return found


def _count(
    section: Section, candidate: Candidate, site: PromptSite, found: Interpretations
) -> None:
    place = {
        "kind": candidate.kind,
        "group": candidate.group,
        "site": str(site),
    }
    thresholds = section.config.f1

    def add(measure: str, value: float | int, **more: object) -> None:
        section.add(candidate.name, measure, value, **place, **more)

    add("n_live", int(found.live().sum()))
    add("n_always_on", found.n_always_on())
    for limit in thresholds:
        add("n_interpretable", int(found.interpretable(limit).sum()), threshold=limit)
    for name, family in zip(section.task.attributes, found.families, strict=False):
        use = attribute_use(found, name, family.sizes(), thresholds)
        add("n_values", use.n_values, attribute=name)
        for limit in thresholds:
            add("values_found", use.n_found[f"{limit:g}"], attribute=name, threshold=limit)
        add("n_splinters", use.n_splinters, attribute=name)
        add("missing_f1", use.missing_f1, attribute=name)


def sweep_thresholds(
    section: Section,
    conditions: Mapping[str, Outcome],
    candidate: Candidate,
    interpretations: Mapping[PromptSite, Interpretations],
) -> None:
    """Subtract latents below each F1 threshold, and those at or above it, from the activations."""
    variants: dict[str, dict[PromptSite, Tensor]] = {}
    for limit in section.config.sweep:
        for side in ("below", "above"):
            variants[f"{side}|{limit:g}"] = {
                site: _subtracted(section, candidate, site, interpretations[site], limit, side)
                for site in section.sites
            }
    outcomes = section.run(variants, section.material.evaluate, f"thresholds, {candidate.name}")
    clean, ablated = conditions[CLEAN].metric, conditions[ABLATED].metric
    defined = ablation_matters(float(clean.double().mean()), float(ablated.double().mean()))
    bootstrap = section.bootstrap(len(clean))
    rows = torch.arange(len(clean))
    place = {"kind": candidate.kind, "group": candidate.group}
    for limit in section.config.sweep:
        for side, measure, score in (
            ("below", "kept_sufficiency", sufficiency),
            ("above", "removed_necessity", necessity),
        ):
            outcome = outcomes[f"{side}|{limit:g}"]
            columns = torch.stack([clean, ablated, outcome.metric], dim=1)
            known = side == "below" or defined
            estimate = bootstrap.estimate(columns, score) if known else UNDEFINED
            section.add(candidate.name, measure, estimate, threshold=limit, **place)
            label = f"{candidate.name}|F1 {side} {limit:g} removed"
            section.keep_prompts(rows, "", label, outcome)


def _subtracted(
    section: Section,
    candidate: Candidate,
    site: PromptSite,
    found: Interpretations,
    limit: float,
    side: str,
) -> Tensor:
    rows = section.material.activations[site]
    removed = found.f1 < limit if side == "below" else found.f1 >= limit
    W_dec = candidate.W_dec(site)
    return torch.cat(
        [
            without_latents(rows[chunk], codes, W_dec, removed)
            for chunk, codes in dense_chunks(candidate.encode(site, rows))
        ]
    )
