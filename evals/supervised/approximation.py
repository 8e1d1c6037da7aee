"""Test 1's scores: how well reconstructions stand in for activations, and what they leave behind.

All are functions of mean logit differences (LD) over prompts, in the order clean, mean ablation,
intervention; ratios are of means, not means of ratios. Source: Makelov, Lange & Nanda, arXiv
2405.08366, section 3.2, A.3, A.11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary.architectures import error_of
from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import Table
from saelab.stats.bootstrap import UNDEFINED, Bootstrap, Estimate

from .contenders import SiteDictionaries
from .scores import (
    ABLATED,
    APPROXIMATION_SECTION,
    CLEAN,
    GREY,
    RANDOM,
    WHISKERS,
    ContenderScore,
    contenders_of,
    define,
    grouped_bars,
    in_words,
    numbers_table,
    pivot,
    pooled,
)
from .section import Section
from .sites import Outcome, PromptSite

APPROXIMATION = define(
    "Test 1: approximation",
    """
    sufficiency (1, higher): Mean metric with the reconstructions in place of the activations at
    all sites at once, over the mean metric of the clean runs. 1 is best. With an empty
    dictionary, which reconstructs the mean, it is the metric under mean ablation over the clean
    one.

    necessity (1, higher): 1 − |M_ablated − M_rest| / |M_ablated − M_clean|, of mean metrics M,
    where “rest” puts the mean plus what the reconstruction misses in place of the activations.
    1 is best. Undefined where mean ablation moves the metric by less than a tenth.

    recovered (1): (M_reconstruction − M_ablated) / (M_clean − M_ablated), of mean metrics, with
    its sign: above 1 it overshoots, below 0 it is worse than mean ablation. Undefined as
    necessity.

    metric (metric of the task): The task's metric (for most tasks the logit of the right answer
    minus that of the wrong one, in logits), mean over prompts, under the named condition.

    fvu (1, lower): Fraction of variance unexplained of the activations at the site, about the
    mean of the fitting prompts.

    l0 (latents): Active latents per activation, mean over prompts and sites.

    attribute_variance (1): Share of the activations' variance at the site that the supervised
    features of the attribute have: their squared norms, weighted by how often the values occur,
    over the total variance of the fitting prompts.
    """,
)

SMALLEST_EFFECT = 0.1
"""Share of the clean LD that mean ablation must move it by for necessity and recovery to be
defined."""


CARRIED = 0.01
"""Share of a site's variance from which on it counts as carrying an attribute."""


def sufficiency(means: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    """From mean LDs (clean, ablated, reconstruction)."""
    return means[..., 2] / means[..., 0]


def necessity(means: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    """From mean LDs (clean, ablated, rest)."""
    gap = (means[..., 1] - means[..., 0]).abs()
    return 1 - (means[..., 1] - means[..., 2]).abs() / gap


def recovered(means: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    """From mean LDs (clean, ablated, reconstruction), with its sign."""
    return (means[..., 2] - means[..., 1]) / (means[..., 0] - means[..., 1])


def ablation_matters(clean: Float[Tensor, " prompts"], ablated: Float[Tensor, " prompts"]) -> bool:
    """Whether mean ablation moves the mean LD enough to divide by."""
    mean = clean.double().mean()
    return bool((ablated.double().mean() - mean).abs() >= SMALLEST_EFFECT * mean.abs())


def measure_approximation(
    clean: Float[Tensor, " prompts"],
    ablated: Float[Tensor, " prompts"],
    reconstruction: Float[Tensor, " prompts"],
    rest: Float[Tensor, " prompts"],
    bootstrap: Bootstrap,
) -> dict[str, Estimate]:
    """Sufficiency, necessity and recovered, from each prompt's LD under the four conditions."""
    replaced = torch.stack([clean, ablated, reconstruction], dim=1)
    left = torch.stack([clean, ablated, rest], dim=1)
    defined = ablation_matters(clean, ablated)
    return {
        "sufficiency": bootstrap.estimate(replaced, sufficiency),
        "necessity": bootstrap.estimate(left, necessity) if defined else UNDEFINED,
        "recovered": bootstrap.estimate(replaced, recovered) if defined else UNDEFINED,
    }


def measure_conditions(section: Section) -> dict[str, Outcome]:
    """Run every evaluated prompt clean and mean-ablated, and keep their mean metrics."""
    material = section.material
    variants = {CLEAN: {}, ABLATED: section.mean_rows(material.activations)}
    outcomes = section.run(variants, material.evaluate, "clean and ablated")
    for name, outcome in outcomes.items():
        section.keep_prompts(name, outcome)
        section.add(name, "metric", section.mean(outcome.metric), kind="condition", mode=name)
    return outcomes


def approximate_skylines(
    section: Section, conditions: dict[str, Outcome]
) -> dict[str, dict[str, Estimate]]:
    """Test 1 of the supervised dictionaries and of the random floor."""
    labels = [prompt.labels for prompt in section.material.evaluate]
    scores = {}
    for name, dictionaries in {**section.skylines, RANDOM: section.floor}.items():
        replaced = {site: dictionaries[site].reconstruct(labels) for site in section.sites}
        kind = "floor" if name == RANDOM else "skyline"
        scores[name] = _measure(section, conditions, name, replaced, kind=kind, group=name)
    return scores


def measure_attributes(section: Section) -> None:
    """How much of each site's variance each attribute has; says where only one has any."""
    carrying: set[str] = set()
    for site in section.sites:
        dictionary = section.skylines[section.ceiling][site]
        rows = section.material.fit_activations[site].double()
        variance = float((rows - rows.mean(0)).square().sum(1).mean())
        squares = dictionary.W_dec.double().square().sum(1) * dictionary.counts.double()
        carried = set()
        for name in dictionary.design.attributes:
            share = float(squares[dictionary.design.columns(name)].sum()) / len(rows) / variance
            section.add(
                section.ceiling,
                "attribute_variance",
                share,
                kind="skyline",
                group=section.ceiling,
                site=str(site),
                attribute=name,
            )
            if share >= CARRIED:
                carried.add(name)
        carrying = max(carrying, carried, key=len)
    if len(carrying) < 2:
        section.results.notes.append(
            f"{section.section.name}: no site has {CARRIED:.0%} of its variance in each of two "
            "attributes, so edits cannot show here whether a dictionary tells attributes apart."
        )


def approximate_candidates(
    section: Section, conditions: dict[str, Outcome], candidates: Sequence[SiteDictionaries]
) -> None:
    """Test 1 of trained dictionaries, with their L0."""
    activations = {site: section.material.activations[site] for site in section.sites}
    for candidate in candidates:
        labels = candidate.labels
        replaced = {site: candidate.reconstruct(site, x) for site, x in activations.items()}
        _measure(section, conditions, candidate.name, replaced, **labels)
        counts = [candidate.encode(site, x).l0().double() for site, x in activations.items()]
        section.add(candidate.name, "l0", section.mean(torch.stack(counts).mean(0)), **labels)


def _measure(
    section: Section,
    conditions: dict[str, Outcome],
    name: str,
    replaced: Mapping[PromptSite, Tensor],
    **labels: str,
) -> dict[str, Estimate]:
    rest = {}
    for site, reconstruction in replaced.items():
        rows, mean = section.material.activations[site], section.means[site]
        error = error_of(rows, reconstruction)
        rest[site] = mean + error
        variance = (rows - mean).double().square().sum()
        fvu = float(error.double().square().sum() / variance) if variance > 0 else None
        section.add(name, "fvu", fvu, site=str(site), **labels)
    variants = {"reconstruction": replaced, "rest": rest}
    outcomes = section.run(variants, section.material.evaluate, name)
    for condition, outcome in outcomes.items():
        section.keep_prompts(f"{name}|{condition}", outcome)
        section.add(name, "metric", section.mean(outcome.metric), mode=condition, **labels)
    clean, ablated = conditions[CLEAN].metric, conditions[ABLATED].metric
    scores = measure_approximation(
        clean,
        ablated,
        outcomes["reconstruction"].metric,
        outcomes["rest"].metric,
        section.bootstrap(len(clean)),
    )
    for measure, estimate in scores.items():
        section.add(name, measure, estimate, **labels)
    return scores


def approximation_charts(scores: Sequence[ContenderScore]) -> list[Chart]:
    """Sufficiency and necessity of every contender at every cross-section."""
    metrics = pooled(scores, "metric", lambda score: (score.section, score.mode))
    floors = {}
    for section in dict.fromkeys(score.section for score in scores):
        clean = metrics.get((section, CLEAN), {}).get("value")
        ablated = metrics.get((section, ABLATED), {}).get("value")
        if clean and ablated is not None:
            floors[section] = ablated / clean
    floor = Series(name=ABLATED, mark="dots", x=list(floors), y=list(floors.values()), style=GREY)
    charts = []
    for measure, title, caption in (
        (
            "sufficiency",
            "Test 1: do reconstructions carry the task?",
            "Mean metric with reconstructions patched at all sites of the cross-section, over the "
            "clean mean metric; grey points are mean ablation.",
        ),
        (
            "necessity",
            "Test 1: is nothing left over?",
            "How far the model falls towards mean ablation when the mean plus what the "
            "reconstruction misses is patched; missing where mean ablation hardly hurts.",
        ),
    ):
        values = pooled(scores, measure, lambda score: (score.group, score.section))
        bars = grouped_bars(values, contenders_of(scores))
        if bars:
            charts.append(
                Chart(
                    name=measure,
                    title=title,
                    caption=f"{caption} {WHISKERS}",
                    x=Axis(title="cross-section"),
                    y=Axis(title=f"{measure} (1 is best)"),
                    series=(*bars, floor) if floors and measure == "sufficiency" else bars,
                    summary=f"Bars of {measure}: {in_words(bars)}.",
                    section=APPROXIMATION_SECTION,
                )
            )
    return charts


def approximation_table(scores: Sequence[ContenderScore]) -> Table:
    """Test 1 with the mean metrics behind its scores."""
    wanted = ("sufficiency", "necessity", "recovered", "l0")
    rows = pivot(
        (
            (score.contender, score.section, score.prompt_seed),
            score.mode if score.measure == "metric" else score.measure,
            score.text,
        )
        for score in scores
        if score.measure in (*wanted, "metric")
    )
    return numbers_table(
        "Test 1, with the mean metrics behind the scores (95 % interval over prompts)",
        (
            "contender",
            "cross-section",
            "prompt seed",
            *wanted,
            "metric reconstruction",
            "metric rest",
        ),
        [
            (
                *key,
                *map(texts.get, wanted),
                texts.get("reconstruction") or texts.get(key[0]),
                texts.get("rest"),
            )
            for key, texts in rows.items()
        ],
    )
