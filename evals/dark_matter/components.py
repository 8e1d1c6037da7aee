"""Dictionaries trained on the parts of another dictionary's error, compared at equal settings (A6).

`saelab train … --error-component nonlinear --error-of DICTIONARY` trains one through the ordinary
loop. Here each is run over held-out rows, turned into the component it was trained on by the judged
dictionary and its probe, and its FVU is that of these rows: how well a sparse dictionary of those
settings explains the linear error, the nonlinear error, or all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.decomposition import (
    ERROR_COMPONENTS,
    ORIGIN_KEY,
    ErrorComponent,
    ErrorProbe,
    ErrorRows,
    hash_of_probe,
)
from saelab.errors import ConfigError
from saelab.formats.chart import Axis, Chart, Series
from saelab.stats.metrics import Moments, ReconstructionStatistics, SparsityStatistics

from .analysis import (
    COMPONENT_WORDS,
    PART_LABELS,
    PART_STYLES,
    AnalysisContext,
    AnalysisResult,
    Finding,
    slug,
)

logger = logging.getLogger(__name__)

SETTINGS = ("method", "d_sae", "target_l0", "n_tokens", "seed")
"""Settings of a training that a comparison holds equal."""


@dataclass(frozen=True, kw_only=True)
class ComponentScore:
    """How well one dictionary explains the component it was trained on."""

    name: str
    """Of its folder."""
    component: ErrorComponent
    """What it was trained on."""
    settings: dict[str, Any]
    """Of its training, by the names of `SETTINGS`."""
    fvu: float
    """On held-out rows of the component, about their own mean."""
    l0: float
    """Active latents per row there."""
    dead: float
    """Share of its latents never active there."""


@dataclass(frozen=True, kw_only=True)
class ComponentFindings:
    """The dictionaries, and each component's share of the activations' variance."""

    scores: list[ComponentScore]
    """In the order given."""
    variance_share: dict[ErrorComponent, float]
    """Variance of each component over that of the activations, pooled over dimensions."""
    n_rows: int
    """Held-out rows."""


def check_components(
    saved: SavedDictionary, probe: ErrorProbe, components: Sequence[SavedDictionary]
) -> None:
    """Check that dictionaries were trained on this dictionary's errors.

    Raises:
        ConfigError: one was not.
    """
    problems = []
    for trained in components:
        origin, folder = trained.made_from.get(ORIGIN_KEY), trained.folder
        if origin is None:
            problems.append(
                f"component_dictionaries: {folder} was trained on activations, not on a "
                "component of an error: train it with --error-component"
            )
        elif origin.get("component") not in ERROR_COMPONENTS:
            problems.append(
                f"component_dictionaries: {folder} records the unknown component "
                f"{origin.get('component')!r}"
            )
        elif origin["dictionary_hash"] != saved.content_hash:
            problems.append(
                f"component_dictionaries: {folder} was trained on the errors of "
                f"{origin['dictionary']!r} (content hash {origin['dictionary_hash'][:12]}…), not "
                f"on those of {saved.folder} ({saved.content_hash[:12]}…)"
            )
        elif origin["probe_hash"] != hash_of_probe(probe):
            logger.warning(
                "%s was trained with another probe of the same dictionary than the one it is "
                "judged with: its FVU is on slightly other rows",
                folder,
            )
    if problems:
        raise ConfigError(problems)


@torch.no_grad()
def measure_components(
    saved: SavedDictionary,
    probe: ErrorProbe,
    components: Sequence[SavedDictionary],
    batches: Iterable[Tensor],
) -> ComponentFindings:
    """Run every dictionary over held-out activations, turned into its component.

    Raises:
        ConfigError: a dictionary that was trained on something else.
        ActivationError: no rows, or rows that do not vary.
    """
    check_components(saved, probe, components)
    d_in, device = saved.dictionary.d_in, saved.dictionary.W_dec.device
    variances = {name: Moments(d_in, device=device) for name in ("activations", *ERROR_COMPONENTS)}
    turned = {part: ErrorRows(saved, probe, part) for part in ERROR_COMPONENTS}
    fits = [ReconstructionStatistics(d_in, device=device) for _ in components]
    sparsity = [SparsityStatistics(trained.dictionary.d_sae, device) for trained in components]
    for batch in batches:
        x = batch.to(device)
        rows = {"activations": x, **{part: errors(x) for part, errors in turned.items()}}
        for name, moments in variances.items():
            moments.update(rows[name])
        for trained, fit, codes_seen in zip(components, fits, sparsity, strict=True):
            errors = rows[component_of(trained)]
            codes = trained.dictionary.encode(errors)
            fit.update(errors, trained.dictionary.decode(codes))
            codes_seen.update(codes)
    total, *shares = (float(moments.deviation().sum()) for moments in variances.values())
    return ComponentFindings(
        scores=[_score(*item) for item in zip(components, fits, sparsity, strict=True)],
        variance_share={
            part: share / total for part, share in zip(ERROR_COMPONENTS, shares, strict=True)
        },
        n_rows=variances["activations"].n_rows,
    )


def component_of(saved: SavedDictionary) -> ErrorComponent:
    """The component a dictionary was trained on."""
    return saved.made_from[ORIGIN_KEY]["component"]


def _score(
    saved: SavedDictionary, fit: ReconstructionStatistics, codes: SparsityStatistics
) -> ComponentScore:
    recorded = {
        **saved.manifest["config"],
        "d_sae": saved.dictionary.d_sae,
        "seed": saved.manifest.get("seed"),
    }
    density = codes.density()
    return ComponentScore(
        name=saved.name,
        component=component_of(saved),
        settings={name: recorded.get(name) for name in SETTINGS},
        fvu=float(fit.values()["fvu"]),
        l0=float(density.sum()),
        dead=float((density == 0).double().mean()),
    )


def numbers(findings: ComponentFindings) -> dict[str, Finding]:
    """Every number by name."""
    rows = f"on {findings.n_rows:,} held-out rows"
    by_name = {
        f"component_variance_share_{part}": Finding(
            findings.variance_share[part],
            f"Variance of {words} over the variance of the activations, pooled over dimensions, "
            f"{rows}.",
        )
        for part, words in COMPONENT_WORDS.items()
    }
    for score in findings.scores:
        words = COMPONENT_WORDS[score.component]
        key = f"{score.component}_{slug(score.name)}"
        trained = ", ".join(f"{name} {value}" for name, value in score.settings.items())
        by_name[f"component_fvu_{key}"] = Finding(
            score.fvu,
            f"FVU of {words} by a dictionary trained on it ({trained}), {rows}. Compare "
            "dictionaries of equal settings only.",
        )
        by_name[f"component_l0_{key}"] = Finding(
            score.l0, f"Mean active latents of that dictionary on {words}.", "latents per row"
        )
        by_name[f"component_dead_{key}"] = Finding(
            score.dead, f"Share of its latents never active on these rows of {words}."
        )
    return by_name


def _settings(score: ComponentScore) -> str:
    s = score.settings
    return f"{s['method']}, {s['d_sae']} latents, k {s['target_l0']}, {s['n_tokens']} rows"


def components_chart(findings: ComponentFindings) -> Chart:
    """FVU of dictionaries trained on the parts of an error, by settings."""
    series = []
    for part in PART_LABELS:
        scores = [score for score in findings.scores if score.component == part]
        if scores:
            series.append(
                Series(
                    name=PART_LABELS[part],
                    x=[_settings(score) for score in scores],
                    y=[score.fvu for score in scores],
                    mark="bars",
                    style=PART_STYLES[part],
                    text=[f"{score.fvu:.3f}" for score in scores],
                    labels=[
                        f"L0 {score.l0:.4g}, never active {score.dead:.3f}" for score in scores
                    ],
                )
            )
    shares = ", ".join(
        f"{PART_LABELS[part]} {share:.3f}" for part, share in findings.variance_share.items()
    )
    stated = "; ".join(
        f"{PART_LABELS[score.component]}, {_settings(score)}: {score.fvu:.3f}"
        for score in findings.scores
    )
    return Chart(
        name="error_components",
        title="Dictionaries trained on the parts of the error",
        caption="FVU of dictionaries trained by the ordinary loop on one component of this "
        f"dictionary's error, each on {findings.n_rows:,} held-out rows of its own component. "
        f"Compare bars of equal settings. Share of the activations' variance: {shares}.",
        summary=f"Bars of FVU: {stated}.",
        x=Axis(title="settings of the training"),
        y=Axis(title="FVU of the component, held out"),
        series=tuple(series),
        height=400,
    )


def components_result(context: AnalysisContext) -> AnalysisResult:
    """Run the analysis on a dictionary."""
    config, saved = context.config, context.subject.saved
    device = str(saved.dictionary.b_dec.device)
    loaded = [load_dictionary(folder, device=device) for folder in config.component_dictionaries]
    batches = (batch.activations for batch in context.rows.batches())
    findings = measure_components(saved, context.probe, loaded, batches)
    return AnalysisResult(
        "Dictionaries trained on the parts",
        numbers(findings),
        [components_chart(findings)],
    )
