"""Test 3 and the occlusion measures at a cross-section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.formats.chart import Axis, Chart, Series
from saelab.stats.bootstrap import UNDEFINED

from .approximation import ablation_matters, necessity, sufficiency
from .contenders import SiteDictionaries, dense_chunks
from .predicates import (
    ALWAYS_ON,
    Interpretations,
    histogram_by_kind,
    interpret,
    without_latents,
)
from .scores import (
    ABLATED,
    CLEAN,
    INTERPRETATION_SECTION,
    ContenderScore,
    Key,
    contenders_of,
    define,
    grouped_bars,
    in_words,
    line,
    pooled,
    style_of,
)
from .section import Section
from .sites import Outcome, PromptSite

INTERPRETATION = define(
    "Test 3: interpretation",
    """
    n_live (latents): Latents that are on at one interpreted prompt at least.

    n_always_on (latents): Latents that are on at 90 % of the prompts or more; their F1 says
    nothing.

    n_interpretable (latents, higher): Live latents, always-on ones left out, whose best F1 over
    all predicates and unions reaches the threshold.

    kept_sufficiency (1, higher): Sufficiency where the contributions of all active latents with
    a best F1 below the threshold are subtracted from the activations.

    removed_necessity (1, higher): Necessity, as in test 1, where the contributions of all
    active latents with a best F1 of at least the threshold are subtracted from the activations.
    1: as bad as mean ablation.

    codes_sufficient (1, higher): Interpretable codes from the counterfactual, the others from
    the prompt, decoded and patched: share of prompts that predict a right answer of the
    counterfactual.

    codes_complete (1, higher): Interpretable codes from the prompt, all others from the
    counterfactual, decoded and patched: share of prompts whose prediction stays that of the
    clean run.
    """,
)

OCCLUSION = define(
    "Occlusion and over-splitting",
    """
    values_found (values, higher): Values of the attribute for which some latent (always-on ones
    left out) has an F1 of at least the threshold.

    n_values (values): Values of the attribute that occur in the interpreted prompts.

    n_splinters (latents, lower): Live latents at least 95 % of whose prompts have one value of
    the attribute, and that are on at less than half of the prompts with that value:
    over-splitting.

    missing_f1 (1, lower): 1 − the highest F1 of any latent for any value of the attribute.
    """,
)

KINDS_IN_WORDS = {
    "value": "one attribute's value",
    "intersection": "values of two attributes",
    "either": "a value in either of several attributes",
    "group": "a group of values",
}
HIGH_F1 = 0.8
PURITY = 0.95
"""Share of the prompts with the latent on at which the value must hold."""
PARTIAL_RECALL = 0.5
"""Share of the prompts with the value below which a latent shows only part of it."""


class AttributeUse(NamedTuple):
    """What the latents of a dictionary make of one attribute."""

    n_values: int
    """Values that occur in the prompts."""
    best_f1: Float[Tensor, " values"]
    """The highest F1 of any latent for each value (always-on ones left out)."""
    n_splinters: int
    """Live latents on at least 95 % purely where one value holds, with a recall below 0.5."""


def attribute_use(
    interpreted: Interpretations, attribute: str, sizes: Int[Tensor, " values"]
) -> AttributeUse:
    """Measure one attribute, of whose values there are `sizes` prompts."""
    usable = (interpreted.on_rate < ALWAYS_ON).unsqueeze(1)
    overlap = interpreted.overlap[attribute].double()
    n_on = (interpreted.on_rate * int(sizes.sum())).round().clamp_min(1).unsqueeze(1)
    pure = (overlap / n_on >= PURITY) & (overlap > 0)
    partial = overlap / sizes.clamp_min(1) < PARTIAL_RECALL
    return AttributeUse(
        n_values=int((sizes > 0).sum()),
        best_f1=torch.where(usable, interpreted.value_f1[attribute], 0.0).amax(0),
        n_splinters=int((pure & partial).any(1).sum()),
    )


def interpret_candidate(
    section: Section, candidate: SiteDictionaries
) -> dict[PromptSite, Interpretations]:
    """Interpret the latents at every site, and count what they show."""
    attributes = list(section.task.attributes)
    meanings = {}
    for site in section.sites:
        codes = candidate.encode(site, section.material.interpret_activations[site])
        meanings[site] = interpret(
            codes, section.material.families, attributes, section.config.union_values
        )
        _count(section, candidate, site, meanings[site])
        _keep_latents(section, candidate, site, meanings[site])
    return meanings


def _count(
    section: Section, candidate: SiteDictionaries, site: PromptSite, interpreted: Interpretations
) -> None:
    def add(measure: str, value: float | int, **labels: Any) -> None:
        section.add(candidate.name, measure, value, site=str(site), **candidate.labels, **labels)

    add("n_live", int(interpreted.live().sum()))
    add("n_always_on", interpreted.n_always_on())
    for limit in section.config.f1:
        add("n_interpretable", int(interpreted.interpretable(limit).sum()), threshold=limit)
    for name, family in zip(section.task.attributes, interpreted.families, strict=False):
        use = attribute_use(interpreted, name, family.sizes())
        add("n_values", use.n_values, attribute=name)
        for limit in section.config.f1:
            n_found = int((use.best_f1 >= limit).sum())
            add("values_found", n_found, attribute=name, threshold=limit)
        add("n_splinters", use.n_splinters, attribute=name)
        add("missing_f1", 1 - float(use.best_f1.max()), attribute=name)


def _keep_latents(
    section: Section, candidate: SiteDictionaries, site: PromptSite, interpreted: Interpretations
) -> None:
    section.results.histograms.append(
        {"group": candidate.group, "site": str(site), "counts": histogram_by_kind(interpreted)}
    )
    section.results.latent_rows += [
        {
            "seed": section.material.seed,
            "section": section.section.name,
            "dictionary": candidate.name,
            "site": str(site),
            "latent": latent,
            "on_rate": float(interpreted.on_rate[latent]),
            "f1": float(interpreted.f1[latent]),
            "kind": interpreted.families[int(interpreted.family[latent])].kind,
            "interpretation": interpreted.words[latent],
        }
        for latent in interpreted.live().nonzero().flatten().tolist()
    ]


def sweep_thresholds(
    section: Section,
    conditions: Mapping[str, Outcome],
    candidate: SiteDictionaries,
    interpretations: Mapping[PromptSite, Interpretations],
) -> None:
    """Subtract latents below each F1 threshold, and those at or above it, from the activations."""
    sides = [(side, limit) for limit in section.config.sweep for side in ("below", "above")]
    variants: dict[str, dict[PromptSite, Tensor]] = {f"{s}|{limit:g}": {} for s, limit in sides}
    for site in section.sites:
        rows, f1 = section.material.activations[site], interpretations[site].f1
        W_dec = candidate.W_dec(site)
        parts: dict[str, list[Tensor]] = {name: [] for name in variants}
        for chunk, codes in dense_chunks(candidate.encode(site, rows)):
            for side, limit in sides:
                removed = f1 < limit if side == "below" else f1 >= limit
                left = without_latents(rows[chunk], codes, W_dec, removed)
                parts[f"{side}|{limit:g}"].append(left)
        for name, left in parts.items():
            variants[name][site] = torch.cat(left)
    outcomes = section.run(variants, section.material.evaluate, f"thresholds, {candidate.name}")
    clean, ablated = conditions[CLEAN].metric, conditions[ABLATED].metric
    defined = ablation_matters(clean, ablated)
    for side, limit in sides:
        outcome = outcomes[f"{side}|{limit:g}"]
        measure = "kept_sufficiency" if side == "below" else "removed_necessity"
        score = sufficiency if side == "below" else necessity
        columns = torch.stack([clean, ablated, outcome.metric], dim=1)
        known = side == "below" or defined
        estimate = section.bootstrap(len(clean)).estimate(columns, score) if known else UNDEFINED
        section.add(candidate.name, measure, estimate, threshold=limit, **candidate.labels)
        section.keep_prompts(f"{candidate.name}|F1 {side} {limit:g} removed", outcome)


def occlusion_charts(scores: Sequence[ContenderScore]) -> list[Chart]:
    """For how many values of each attribute there is a latent."""
    thresholds = [s.threshold for s in scores if s.measure == "values_found" and s.threshold]
    if not thresholds:
        return []
    lowest = min(thresholds)
    kept = [score for score in scores if score.threshold in (None, lowest)]

    def key(score: ContenderScore) -> Key:
        return (score.group, score.attribute)

    values = pooled(kept, "n_values", lambda score: (score.attribute,))
    splinters = pooled(kept, "n_splinters", key)
    shares, labels = {}, {}
    for index, pool in pooled(kept, "values_found", key).items():
        n_values, n_found = values[index[1:]]["value"], pool["value"]
        if n_values and n_found is not None:
            shares[index] = {"value": n_found / n_values}
            cut = splinters.get(index, {}).get("value")
            labels[index] = f"{n_found:g} of {n_values:g} values, {cut} splinters (means)"
    bars = grouped_bars(shares, contenders_of(scores), whiskers=False, labels=labels)
    return [
        Chart(
            name="occlusion",
            title="Occlusion: attributes whose values have latents",
            caption=f"Share of an attribute's values for which some latent reaches F1 {lowest:g} "
            "(always-on latents left out), mean over sites and seeds. An attribute with a low bar "
            "beside one with a high bar is occluded. The table has the mean number of splinters "
            "too: latents that are pure in one value but cover less than half of its prompts.",
            x=Axis(title="attribute"),
            y=Axis(title=f"share of values with F1 ≥ {lowest:g}", low=0, high=1.02),
            series=bars,
            summary=f"Bars of the share of values found: {in_words(bars)}.",
            section=INTERPRETATION_SECTION,
        )
    ]


def histogram_charts(histograms: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Live latents by best F1 and kind of predicate, a chart per kind of dictionary."""
    panels: dict[str, dict[str, list[int]]] = {}
    for histogram in histograms:
        panel = panels.setdefault(histogram["group"], {})
        for kind, counts in histogram["counts"].items():
            before = panel.get(kind, [0] * len(counts))
            panel[kind] = [a + b for a, b in zip(before, counts, strict=True)]
    charts = []
    for number, (group, panel) in enumerate(panels.items()):
        n_bars = len(next(iter(panel.values())))
        edges = [bar / n_bars for bar in range(n_bars + 1)]
        total = sum(map(sum, panel.values()))
        high = sum(sum(counts[round(HIGH_F1 * n_bars) :]) for counts in panel.values())
        charts.append(
            Chart(
                name=f"f1_histogram_{number}",
                title=f"Test 3: what the latents of {group} mean",
                caption="Live latents of all sites, seeds and cross-sections by the F1 of their "
                "best predicate or union of predicates, coloured by its kind; latents that are on "
                "at 90 % of the prompts or more are left out. One that is on nearly always scores "
                "2p/(1 + p) for a predicate of probability p, so bars below 0.8 may mean little.",
                x=Axis(title="best F1"),
                y=Axis(title="live latents"),
                series=tuple(
                    Series(name=KINDS_IN_WORDS[kind], mark="histogram", x=[*edges], y=[*counts])
                    for kind, counts in panel.items()
                ),
                stacked=True,
                summary=f"Stacked histogram of best F1; {group}: {high} of {total} at "
                f"{HIGH_F1:g} or more.",
                section=INTERPRETATION_SECTION,
            )
        )
    return charts


def sweep_charts(scores: Sequence[ContenderScore]) -> list[Chart]:
    """What is lost when latents below, or above, an F1 are subtracted, per cross-section."""
    words = {
        "kept_sufficiency": "sufficiency, latents below removed",
        "removed_necessity": "necessity, latents above removed",
    }
    lines: dict[Key, list[tuple[Any, Any, Any]]] = {}
    for measure in words:
        values = pooled(scores, measure, lambda s: (s.section, s.group, s.threshold))
        for (section, group, limit), value in values.items():
            if value["value"] is not None:
                key = (section, group, measure)
                lines.setdefault(key, []).append((limit, limit, value["value"]))
    names = contenders_of(scores)
    panels: dict[str, list[Series]] = {}
    for (section, group, measure), points in lines.items():
        name, dashed = f"{group}: {words[measure]}", measure == "removed_necessity"
        panels.setdefault(section, []).append(line(name, points, style_of(group, names), dashed))
    return [
        Chart(
            name=f"f1_sweep_{number}",
            title=f"Test 3: do the interpretable latents carry the task at {section}?",
            caption="Solid: sufficiency when all active latents with a best F1 below the threshold "
            "are subtracted from the activations; it stays near 1 as long as interpretable latents "
            "suffice. Dashed: necessity when those at or above it are subtracted; near 1 where "
            "they are needed.",
            x=Axis(title="F1 threshold"),
            y=Axis(title="score"),
            series=tuple(series),
            section=INTERPRETATION_SECTION,
        )
        for number, (section, series) in enumerate(panels.items())
    ]
