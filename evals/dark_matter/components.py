"""Dictionaries trained on the parts of another dictionary's error, compared at equal settings (A6).

`saelab train … --error-component nonlinear --error-of DICTIONARY` trains one through the ordinary
loop. Here each is run over held-out rows, turned into the component it was trained on by the judged
dictionary and its probe, and its FVU is that of these rows: how well a sparse dictionary of those
settings explains the linear error, the nonlinear error, or all of it.
"""

from __future__ import annotations

import logging
import re
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
from saelab.stats.metrics import ReconstructionStatistics, SparsityStatistics

from .analysis import PART_LABELS, PART_STYLES, AnalysisResult, Context, Meaning

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ComponentScore:
    """How well one dictionary explains the component it was trained on."""

    name: str
    """Of its folder."""
    component: ErrorComponent
    """What it was trained on."""
    settings: dict[str, Any]
    """Of its training: method, d_sae, target_l0, n_tokens, seed."""
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
    for one in components:
        origin = one.made_from.get(ORIGIN_KEY)
        if origin is None:
            problems.append(
                f"component_dictionaries: {one.folder} was trained on activations, not on a "
                "component of an error: train it with --error-component"
            )
        elif origin.get("component") not in ERROR_COMPONENTS:
            problems.append(
                f"component_dictionaries: {one.folder} records the unknown component "
                f"{origin.get('component')!r}"
            )
        elif origin["dictionary_hash"] != saved.content_hash:
            problems.append(
                f"component_dictionaries: {one.folder} was trained on the errors of "
                f"{origin['dictionary']!r} (content hash {origin['dictionary_hash'][:12]}…), not "
                f"on those of {saved.folder} ({saved.content_hash[:12]}…)"
            )
        elif origin["probe_hash"] != hash_of_probe(probe):
            logger.warning(
                "%s was trained with another probe of the same dictionary than the one it is "
                "judged with: its FVU is on slightly other rows",
                one.folder,
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
    """Run every dictionary over held-out rows of its component.

    Args:
        saved: the dictionary whose error it is.
        probe: fitted to its errors on other rows.
        components: dictionaries trained on them.
        batches: held-out activations, [rows, d_in] each.

    Raises:
        ConfigError: a dictionary that was trained on something else.
        ActivationError: no rows, or rows that do not vary.
    """
    check_components(saved, probe, components)
    d_in = saved.dictionary.d_in
    device = saved.dictionary.W_dec.device
    activations = ReconstructionStatistics(d_in, device=device)
    own: dict[ErrorComponent, ReconstructionStatistics] = {
        part: ReconstructionStatistics(d_in, device=device) for part in ERROR_COMPONENTS
    }
    fits = [ReconstructionStatistics(d_in, device=device) for _ in components]
    codes_of = [SparsityStatistics(one.dictionary.d_sae, device) for one in components]
    turn: dict[ErrorComponent, ErrorRows] = {
        part: ErrorRows(saved, probe, part) for part in ERROR_COMPONENTS
    }
    for batch in batches:
        x = batch.to(device)
        activations.update(x, torch.zeros_like(x))
        rows = {part: turned(x) for part, turned in turn.items()}
        for part in ERROR_COMPONENTS:
            own[part].update(rows[part], torch.zeros_like(x))
        for place, one in enumerate(components):
            errors = rows[component_of(one)]
            codes = one.dictionary.encode(errors)
            fits[place].update(errors, one.dictionary.decode(codes))
            codes_of[place].update(codes)
    variance = float(activations.moments.deviation().sum())
    return ComponentFindings(
        scores=[
            _score(one, fit, codes)
            for one, fit, codes in zip(components, fits, codes_of, strict=True)
        ],
        variance_share={
            part: float(found.moments.deviation().sum()) / variance for part, found in own.items()
        },
        n_rows=activations.n_rows,
    )


def component_of(saved: SavedDictionary) -> ErrorComponent:
    """The component a dictionary was trained on."""
    return saved.made_from[ORIGIN_KEY]["component"]


def _score(
    saved: SavedDictionary, fit: ReconstructionStatistics, codes: SparsityStatistics
) -> ComponentScore:
    training = saved.manifest["config"]
    density = codes.density()
    return ComponentScore(
        name=saved.name,
        component=component_of(saved),
        settings={
            "method": training.get("method"),
            "d_sae": saved.dictionary.d_sae,
            "target_l0": training.get("target_l0"),
            "n_tokens": training.get("n_tokens"),
            "seed": saved.manifest.get("seed"),
        },
        fvu=float(fit.values()["fvu"]),
        l0=float(density.sum()),
        dead=float((density == 0).double().mean()),
    )


WORDS: dict[ErrorComponent, str] = {
    "error": "the error",
    "linear": "the linear error",
    "nonlinear": "the nonlinear error",
}


def meanings(findings: ComponentFindings) -> dict[str, Meaning]:
    """Unit and sentence of every value."""
    found = {
        f"component_variance_share_{part}": Meaning(
            "1",
            f"Variance of {words} over the variance of the activations, pooled over dimensions, on "
            f"{findings.n_rows:,} held-out rows.",
        )
        for part, words in WORDS.items()
    }
    for score in findings.scores:
        words, key = WORDS[score.component], _key(score)
        trained = ", ".join(f"{name} {value}" for name, value in score.settings.items())
        found[f"component_fvu_{key}"] = Meaning(
            "1",
            f"FVU of {words} by a dictionary trained on it ({trained}), on {findings.n_rows:,} "
            "held-out rows. Compare dictionaries of equal settings only.",
        )
        found[f"component_l0_{key}"] = Meaning(
            "latents per row", f"Mean active latents of that dictionary on {words}."
        )
        found[f"component_dead_{key}"] = Meaning(
            "1", f"Share of its latents never active on these rows of {words}."
        )
    return found


def values(findings: ComponentFindings) -> dict[str, float | int | None]:
    """Every number by name."""
    found: dict[str, float | int | None] = {
        f"component_variance_share_{part}": findings.variance_share[part] for part in WORDS
    }
    for score in findings.scores:
        key = _key(score)
        found[f"component_fvu_{key}"] = score.fvu
        found[f"component_l0_{key}"] = score.l0
        found[f"component_dead_{key}"] = score.dead
    return found


def _settings(score: ComponentScore) -> str:
    s = score.settings
    return f"{s['method']}, {s['d_sae']} latents, k {s['target_l0']}, {s['n_tokens']} rows"


def _key(score: ComponentScore) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "_", score.name)
    return f"{score.component}_{name}"


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


def components_result(context: Context) -> AnalysisResult:
    """Run the analysis on a dictionary."""
    config, saved = context.config, context.subject.saved
    device = str(saved.dictionary.b_dec.device)
    loaded = [load_dictionary(folder, device=device) for folder in config.component_dictionaries]
    batches = (batch.activations for batch in context.rows.batches())
    findings = measure_components(saved, context.probe, loaded, batches)
    return AnalysisResult(
        "Dictionaries trained on the parts",
        values(findings),
        meanings(findings),
        [components_chart(findings)],
    )
