"""Test 1's scores: how well reconstructions stand in for activations, and what they leave behind.

All are functions of mean logit differences (LD) over prompts, in the order clean, mean ablation,
intervention; ratios are of means, not means of ratios. Source: Makelov, Lange & Nanda, arXiv
2405.08366, section 3.2, A.3, A.11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import Table
from saelab.stats.bootstrap import UNDEFINED, Bootstrap, Estimate

from ..suite import Definition
from .contenders import Candidate
from .scores import (
    ABLATED,
    APPROXIMATION_SECTION,
    CLEAN,
    GREY,
    RANDOM,
    WHISKERS,
    Key,
    Score,
    contenders_of,
    grouped_bars,
    in_words,
    pooled,
)
from .section import Section, mean_rows
from .sites import Outcome, PromptSite

APPROXIMATION_GROUP = "Test 1: approximation"
APPROXIMATION = (
    Definition(
        name="sufficiency",
        unit="1",
        better="higher",
        group=APPROXIMATION_GROUP,
        text="Mean metric with the reconstructions in place of the activations at all sites "
        "at once, over the mean metric of the clean runs. 1 is best. With an empty dictionary, "
        "which reconstructs the mean, it is the metric under mean ablation over the clean one.",
    ),
    Definition(
        name="necessity",
        unit="1",
        better="higher",
        group=APPROXIMATION_GROUP,
        text="1 − |M_ablated − M_rest| / |M_ablated − M_clean|, of mean metrics M, where "
        "“rest” puts the mean plus what the reconstruction misses in place of the activations. 1 "
        "is best. Undefined where mean ablation moves the metric by less than a tenth.",
    ),
    Definition(
        name="recovered",
        unit="1",
        group=APPROXIMATION_GROUP,
        text="(M_reconstruction − M_ablated) / (M_clean − M_ablated), of mean metrics, with "
        "its sign: above 1 it overshoots, below 0 it is worse than mean ablation. Undefined as "
        "necessity.",
    ),
    Definition(
        name="metric",
        unit="metric of the task",
        group=APPROXIMATION_GROUP,
        text="The task's metric (for most tasks the logit of the right answer minus that of "
        "the wrong one, in logits), mean over prompts, under the named condition.",
    ),
    Definition(
        name="fvu",
        unit="1",
        better="lower",
        group=APPROXIMATION_GROUP,
        text="Fraction of variance unexplained of the activations at the site, about the "
        "mean of the fitting prompts.",
    ),
    Definition(
        name="l0",
        unit="latents",
        group=APPROXIMATION_GROUP,
        text="Active latents per activation, mean over prompts and sites.",
    ),
    Definition(
        name="attribute_variance",
        unit="1",
        group=APPROXIMATION_GROUP,
        text="Share of the activations' variance at the site that the supervised features of "
        "the attribute have: their squared norms, weighted by how often the values occur, over the "
        "total variance of the fitting prompts.",
    ),
)

SMALLEST_EFFECT = 0.1
"""Share of the clean LD that mean ablation must move it by for necessity and recovery to be
defined."""


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """Test 1 of one dictionary at one cross-section; mean logit differences beside every score."""

    sufficiency: Estimate
    """LD with reconstructions in place of activations, over the clean LD; 1 is best."""
    necessity: Estimate
    """1 − |LD_ablated − LD_rest| / |LD_ablated − LD_clean|, where rest is the mean plus what the
    reconstruction misses; 1 is best. Undefined where mean ablation hardly hurts."""
    recovered: Estimate
    """(LD_reconstruction − LD_ablated) / (LD_clean − LD_ablated), with its sign: above 1 it
    overshoots, below 0 it is worse than ablation."""
    logit_difference: dict[str, float]
    """Mean LD of `clean`, `mean_ablation`, `reconstruction` and `rest`, in logits."""


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


def ablation_matters(clean: float, ablated: float) -> bool:
    """Whether mean ablation moves the mean LD enough to divide by."""
    return abs(ablated - clean) >= SMALLEST_EFFECT * abs(clean)


def measure_approximation(
    clean: Float[Tensor, " prompts"],
    ablated: Float[Tensor, " prompts"],
    reconstruction: Float[Tensor, " prompts"],
    rest: Float[Tensor, " prompts"],
    bootstrap: Bootstrap,
) -> Approximation:
    """Test 1 from each prompt's logit differences under the four conditions."""
    kinds = {
        "clean": clean,
        "mean_ablation": ablated,
        "reconstruction": reconstruction,
        "rest": rest,
    }
    means = {name: float(values.double().mean()) for name, values in kinds.items()}
    replaced = torch.stack([clean, ablated, reconstruction], dim=1)
    left = torch.stack([clean, ablated, rest], dim=1)
    defined = ablation_matters(means["clean"], means["mean_ablation"])
    return Approximation(
        sufficiency=bootstrap.estimate(replaced, sufficiency),
        necessity=bootstrap.estimate(left, necessity) if defined else UNDEFINED,
        recovered=bootstrap.estimate(replaced, recovered) if defined else UNDEFINED,
        logit_difference=means,
    )


CARRIED = 0.01
"""Share of a site's variance from which on it counts as carrying an attribute."""

Reconstruct = Callable[[PromptSite, Tensor], Tensor]


def measure_conditions(section: Section) -> dict[str, Outcome]:
    """Run every evaluated prompt clean and mean-ablated, and keep their mean metrics."""
    material = section.material
    variants = {CLEAN: {}, ABLATED: mean_rows(section, material.activations)}
    found = section.run(variants, material.evaluate, "clean and ablated")
    rows = torch.arange(len(material.evaluate))
    for name, outcome in found.items():
        section.keep_prompts(rows, "", name, outcome)
        columns = outcome.metric.unsqueeze(1)
        estimate = section.bootstrap(len(rows)).estimate(columns)
        section.add(name, "metric", estimate, kind="condition", mode=name)
    return found


def approximate_skylines(
    section: Section, conditions: dict[str, Outcome]
) -> dict[str, Approximation]:
    """Test 1 of the supervised dictionaries and of the random floor."""
    labels = [prompt.labels for prompt in section.material.evaluate]
    found = {}
    for name, dictionaries in {**section.skylines, RANDOM: section.floor}.items():
        kind = "floor" if name == RANDOM else "skyline"
        found[name] = _measure(
            section,
            conditions,
            name,
            kind,
            name,
            lambda site, rows, dictionaries=dictionaries: dictionaries[site].reconstruct(labels),  # noqa: ARG005
        )
    return found


def measure_attributes(section: Section) -> None:
    """How much of each site's variance each attribute has; says where only one has any."""
    carrying: set[str] = set()
    for site in section.sites:
        dictionary = section.skylines[section.ceiling][site]
        rows = section.material.fit_activations[site].double()
        variance = float((rows - rows.mean(0)).square().sum(1).mean())
        squares = dictionary.W_dec.double().square().sum(1) * dictionary.counts.double()
        shares = []
        for name in dictionary.design.attributes:
            share = float(squares[dictionary.design.columns(name)].sum()) / len(rows) / variance
            shares.append((name, share))
            section.add(
                section.ceiling,
                "attribute_variance",
                share,
                kind="skyline",
                group=section.ceiling,
                site=str(site),
                attribute=name,
            )
        carried = {name for name, share in shares if share >= CARRIED}
        carrying = carried if len(carried) > len(carrying) else carrying
    if len(carrying) < 2:
        section.notes.append(
            f"{section.section.name}: no site has {CARRIED:.0%} of its variance in each of two "
            "attributes, so edits cannot show here whether a dictionary tells attributes apart."
        )


def approximate_candidates(
    section: Section, conditions: dict[str, Outcome], candidates: Sequence[Candidate]
) -> None:
    """Test 1 of trained dictionaries, with their L0."""
    for candidate in candidates:
        kind = candidate.kind
        _measure(section, conditions, candidate.name, kind, candidate.group, candidate.reconstruct)
        counts = [
            candidate.encode(site, section.material.activations[site]).l0().double()
            for site in section.sites
        ]
        n = len(section.material.evaluate)
        l0 = section.bootstrap(n).estimate(torch.stack(counts).mean(0).unsqueeze(1))
        section.add(candidate.name, "l0", l0, group=candidate.group, kind=kind)


def _measure(
    section: Section,
    conditions: dict[str, Outcome],
    name: str,
    kind: str,
    group: str,
    reconstruct: Reconstruct,
) -> Approximation:
    material, owner = section.material, {"kind": kind, "group": group}
    replaced, rest = {}, {}
    for site in section.sites:
        rows, mean = material.activations[site], section.means[site]
        replaced[site] = reconstruct(site, rows)
        error = rows - replaced[site]
        rest[site] = mean + error
        variance = (rows - mean).double().square().sum()
        fvu = float(error.double().square().sum() / variance) if variance > 0 else None
        section.add(name, "fvu", fvu, site=str(site), **owner)
    variants = {"reconstruction": replaced, "rest": rest}
    outcomes = section.run(variants, material.evaluate, name)
    rows = torch.arange(len(material.evaluate))
    for condition, outcome in outcomes.items():
        section.keep_prompts(rows, "", f"{name}|{condition}", outcome)
        metric = section.bootstrap(len(rows)).estimate(outcome.metric.unsqueeze(1))
        section.add(name, "metric", metric, mode=condition, **owner)
    found = measure_approximation(
        conditions[CLEAN].metric,
        conditions[ABLATED].metric,
        outcomes["reconstruction"].metric,
        outcomes["rest"].metric,
        section.bootstrap(len(rows)),
    )
    section.add(name, "sufficiency", found.sufficiency, **owner)
    section.add(name, "necessity", found.necessity, **owner)
    section.add(name, "recovered", found.recovered, **owner)
    return found


def approximation_charts(scores: Sequence[Score]) -> list[Chart]:
    """Sufficiency and necessity of every contender at every cross-section."""
    metrics = pooled(scores, "metric", lambda score: (score.section, score.mode))
    floors = {}
    for section in dict.fromkeys(score.section for score in scores):
        clean = metrics.get((section, CLEAN), {}).get("value")
        ablated = metrics.get((section, ABLATED), {}).get("value")
        if clean and ablated is not None:
            floors[section] = ablated / clean
    floor = Series(name=ABLATED, mark="dots", x=list(floors), y=list(floors.values()), style=GREY)
    captions = {
        "sufficiency": "Mean metric with reconstructions patched at all sites of the "
        "cross-section, over the clean mean metric; grey points are mean ablation.",
        "necessity": "How far the model falls towards mean ablation when the mean plus what the "
        "reconstruction misses is patched; missing where mean ablation hardly hurts.",
    }
    titles = {
        "sufficiency": "Test 1: do reconstructions carry the task?",
        "necessity": "Test 1: is nothing left over?",
    }
    charts = []
    for measure, caption in captions.items():
        found = pooled(scores, measure, lambda score: (score.group, score.section))
        bars = grouped_bars(found, contenders_of(scores))
        if not bars:
            continue
        charts.append(
            Chart(
                name=measure,
                title=titles[measure],
                caption=f"{caption} {WHISKERS}",
                x=Axis(title="cross-section"),
                y=Axis(title=f"{measure} (1 is best)"),
                series=(*bars, floor) if floors and measure == "sufficiency" else bars,
                summary=f"Bars of {measure}: {in_words(bars)}.",
                section=APPROXIMATION_SECTION,
            )
        )
    return charts


def approximation_table(scores: Sequence[Score]) -> Table:
    """Test 1 with the mean metrics behind its scores."""
    wanted = ("sufficiency", "necessity", "recovered", "l0")
    rows: dict[Key, dict[str, str]] = {}
    for score in scores:
        found = rows.setdefault((score.contender, score.section, score.prompt_seed), {})
        if score.measure in wanted:
            found[score.measure] = score.text
        if score.measure == "metric":
            found[score.mode] = score.text
    return Table(
        title="Test 1, with the mean metrics behind the scores (95 % interval over prompts)",
        columns=(
            *("contender", "cross-section", "prompt seed"),
            *(*wanted, "metric reconstruction", "metric rest"),
        ),
        rows=tuple(
            (
                *key,
                *(found.get(name, "–") for name in wanted),
                found.get("reconstruction") or found.get(key[0], "–"),
                found.get("rest", "–"),
            )
            for key, found in rows.items()
            if found
        ),
        section="Numbers",
    )
