"""Test 3 and the occlusion measures at a cross-section."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .approximation import ablation_matters, necessity, sufficiency
from .bootstrap import UNDEFINED
from .contenders import Candidate, dense_chunks
from .interpretation import Interpretations, interpret, without_latents
from .occlusion import attribute_use
from .patching import Outcome
from .section import ABLATED, CLEAN, Section
from .sites import Site


def interpret_candidate(section: Section, candidate: Candidate) -> dict[Site, Interpretations]:
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


def _count(section: Section, candidate: Candidate, site: Site, found: Interpretations) -> None:
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
    interpretations: Mapping[Site, Interpretations],
) -> None:
    """Subtract latents below each F1 threshold, and those at or above it, from the activations."""
    variants: dict[str, dict[Site, Tensor]] = {}
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
    site: Site,
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
