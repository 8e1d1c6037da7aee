"""What the tests share: prompts and their activations, checks of the task, and at a cross-section
its sites, supervised dictionaries and scores.

The thresholds of the checks are the project's choice; the checks are those of arXiv 2405.08366,
footnotes 2 and 5, and of its general interface.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ModelError
from saelab.model.language_model import LanguageModel
from saelab.stats.bootstrap import Bootstrap, Estimate

from .dictionaries import SupervisedDictionary, fit_supervised, random_decoder
from .predicates import PredicateFamily, families_of
from .scores import ContenderScore
from .sites import (
    CrossSection,
    Outcome,
    PreparedBatch,
    PromptSite,
    gather,
    patched_outcomes,
    prepared_batches,
)
from .suite import SupervisedConfig
from .tasks import Prompt, Task, counterfactual_pairs

Activations = Mapping[PromptSite, Float[Tensor, "_ _"]]


@dataclass(frozen=True, eq=False)
class EditedPrompts:
    """The prompts that have a counterfactual in some attributes, and these counterfactuals."""

    edit: tuple[str, ...]
    rows: Int[Tensor, " pairs"]
    """Which of the evaluated prompts."""
    prompts: list[Prompt]
    targets: list[Prompt]
    target_activations: Activations

    @property
    def name(self) -> str:
        """The attributes, joined."""
        return "+".join(self.edit)


@dataclass(frozen=True, eq=False)
class Material:
    """Everything that is measured on, for one seed of the prompts."""

    seed: int
    fit: list[Prompt]
    fit_activations: Activations
    interpret: list[Prompt]
    interpret_activations: Activations
    evaluate: list[Prompt]
    activations: Activations
    """Of the evaluated prompts."""
    edits: dict[tuple[str, ...], EditedPrompts]
    families: list[PredicateFamily]
    """Predicates of the prompts that latents are interpreted on."""


def collect(
    model: LanguageModel,
    task: Task,
    sections: Sequence[CrossSection],
    config: SupervisedConfig,
    seed: int,
) -> Material:
    """Draw the prompts, make their counterfactuals and capture all activations.

    Raises:
        ConfigError: a task that cannot give so many prompts.
        ModelError: a site that the model does not have.
    """
    sites = list(dict.fromkeys(site for section in sections for site in section.sites))
    edits = list(dict.fromkeys(edit for section in sections for edit in section.edits))

    def at_sites(prompts: Sequence[Prompt]) -> Activations:
        return gather(model, prompts, sites, batch_prompts=config.batch_prompts)

    fit = task.sample(config.n_fit, "train", seed)
    interpret = task.sample(config.n_interpret, "validation", seed)
    evaluate = task.sample(config.n_eval, config.eval_split, seed)
    edited = {}
    for edit in edits:
        rows, targets = counterfactual_pairs(task, evaluate, edit, seed)
        if not targets:
            continue
        prompts = [evaluate[row] for row in rows.tolist()]
        edited[edit] = EditedPrompts(edit, rows, prompts, targets, at_sites(targets))
    return Material(
        seed=seed,
        fit=fit,
        fit_activations=at_sites(fit),
        interpret=interpret,
        interpret_activations=at_sites(interpret),
        evaluate=evaluate,
        activations=at_sites(evaluate),
        edits=edited,
        families=families_of(label_indices(task, interpret), task.attributes, task.groups),
    )


def label_indices(task: Task, prompts: Sequence[Prompt]) -> dict[str, Int[Tensor, " prompts"]]:
    """Attribute -> index of each prompt's value among the attribute's values."""
    indices = {}
    for name, values in task.attributes.items():
        numbers = {value: index for index, value in enumerate(values)}
        indices[name] = torch.tensor([numbers.get(prompt.labels[name], -1) for prompt in prompts])
    return indices


BASE_PROMPTS = 200
"""Prompts on which the model must show that it can do the task."""
ENOUGH_PROMPTS = 30
"""Fitting prompts that every attribute value should have."""
STRONG_DEPENDENCE = 0.1
"""Cramér's V from which mean features count what two attributes share twice."""
FEWEST_RIGHT = 0.75
"""Share of prompts with a positive metric below which a model cannot do a task."""


def coverage(task: Task, prompts: Sequence[Prompt]) -> dict[str, dict[str, int]]:
    """How many prompts have each value of each attribute.

    Raises:
        ConfigError: naming every attribute with a value that no prompt has.
    """
    counts, problems = {}, []
    for name, values in task.attributes.items():
        counter = Counter(prompt.labels[name] for prompt in prompts)
        counts[name] = {value: counter[value] for value in values}
        missing = [value for value in values if not counter[value]]
        if missing:
            problems.append(
                f"task {task.name}: {len(missing)} of {len(values)} values of {name!r} have no "
                f"example among {len(prompts)} prompts ({', '.join(missing[:3])} …): take more "
                "prompts"
            )
    if problems:
        raise ConfigError(problems)
    return counts


def dependence(task: Task, prompts: Sequence[Prompt]) -> dict[tuple[str, str], float]:
    """Cramér's V of every pair of attributes, corrected for chance: 0 independent, 1 determined."""
    labels = label_indices(task, prompts)
    sizes = {name: len(values) for name, values in task.attributes.items()}
    values = {}
    for first, second in combinations(task.attributes, 2):
        cells = labels[first] * sizes[second] + labels[second]
        counts = torch.bincount(cells, minlength=sizes[first] * sizes[second])
        values[first, second] = cramers_v(counts.reshape(sizes[first], sizes[second]).double())
    return values


def cramers_v(table: Float[Tensor, "rows columns"]) -> float:
    """Cramér's V of a contingency table with Bergsma's correction (2013).

    Without the correction a table of 120 × 120 values and 5,000 independent prompts has V = 0.15.
    Values without a count are left out.
    """
    table = table.double()
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    n, (rows, columns) = float(table.sum()), table.shape
    if n < 2 or min(rows, columns) < 2:
        return 0.0
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / n
    phi = float(((table - expected).square() / expected).sum()) / n
    phi = max(0.0, phi - (rows - 1) * (columns - 1) / (n - 1))
    sides = [size - (size - 1) ** 2 / (n - 1) for size in (rows, columns)]
    return min(1.0, (phi / max(min(sides) - 1, 1e-12)) ** 0.5)


def base_accuracy(
    model: LanguageModel, task: Task, prompts: Sequence[Prompt], *, batch_prompts: int = 64
) -> dict[str, float | int]:
    """How well the model does a task by itself, by what is measured.

    A prompt with a positive metric may still have a likelier third answer.
    """
    outcome = patched_outcomes(
        model, task, prompts, {"clean": {}}, batch_prompts=batch_prompts, description="clean runs"
    )["clean"]
    predicted = zip(outcome.prediction.tolist(), prompts, strict=True)
    right = [token in prompt.correct for token, prompt in predicted]
    return {
        "prompts tried": len(prompts),
        "mean metric": float(outcome.metric.double().mean()),
        "share with a positive metric": float((outcome.metric > 0).double().mean()),
        "share predicted right": sum(right) / len(right),
    }


def require_able(model: LanguageModel, task: Task, accuracy: Mapping[str, float | int]) -> None:
    """Refuse to judge anything on a task that the model cannot do.

    Raises:
        ModelError: too few prompts have a positive metric.
    """
    positive = accuracy["share with a positive metric"]
    if positive < FEWEST_RIGHT:
        raise ModelError(
            f"{model.name} prefers the right answer in {positive:.0%} of "
            f"{accuracy['prompts tried']} prompts of task {task.name}, and at least "
            f"{FEWEST_RIGHT:.0%} are needed to judge anything on it: choose another task or model"
        )


def strong_pairs(values: Mapping[tuple[str, str], float]) -> list[tuple[str, str]]:
    """Pairs of attributes that depend on each other too much for mean features."""
    return [pair for pair, value in values.items() if value > STRONG_DEPENDENCE]


def check_task(
    model: LanguageModel, task: Task, config: SupervisedConfig, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """What must be known before numbers are believed: coverage, dependence, base accuracy.

    Returns:
        (what was measured, notes for the reader).

    Raises:
        ConfigError: an attribute value without examples.
        ModelError: a model that cannot do the task.
    """
    fit = task.sample(config.n_fit, "train", seed)
    counts = coverage(task, fit)
    values = dependence(task, fit)
    few = task.sample(min(BASE_PROMPTS, config.n_eval), config.eval_split, seed)
    able = base_accuracy(model, task, few, batch_prompts=config.batch_prompts)
    require_able(model, task, able)
    notes = []
    rare = {name: sum(n < ENOUGH_PROMPTS for n in of.values()) for name, of in counts.items()}
    counted = ", ".join(f"{n_rare} of {name}" for name, n_rare in rare.items() if n_rare)
    if counted:
        notes.append(
            f"Prompt seed {seed}: values with few fitting prompts (below {ENOUGH_PROMPTS}): "
            f"{counted}; their features are noisy."
        )
    pairs = strong_pairs(values)
    if pairs and "mean" in config.skylines:
        named = ", ".join(" and ".join(pair) for pair in pairs)
        notes.append(
            f"Prompt seed {seed}: {named} depend on each other, so the mean dictionary counts what "
            "they share twice; read the MSE one."
        )
    return {
        "fitting prompts of the rarest value": {
            name: min(of_value.values()) for name, of_value in counts.items()
        },
        "dependence (Cramér's V)": {" and ".join(p): round(v, 4) for p, v in values.items()},
        **{f"model: {name}": value for name, value in able.items()},
    }, notes


@dataclass(eq=False)
class SupervisedScores:
    """What a run measures, over its cross-sections and seeds of the prompts."""

    scores: list[ContenderScore] = field(default_factory=list)
    prompt_rows: list[dict[str, Any]] = field(default_factory=list)
    """Columns of the per-prompt table, one entry per variant."""
    latent_rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader should know, in sentences."""
    histograms: list[dict[str, Any]] = field(default_factory=list)
    """Per cross-section, candidate and seed: live latents by F1 and kind of predicate."""


@dataclass(frozen=True, eq=False)
class Section:
    """A cross-section of one task with the prompts of one seed."""

    model: LanguageModel
    task: Task
    section: CrossSection
    material: Material
    config: SupervisedConfig
    skylines: Mapping[str, Mapping[PromptSite, SupervisedDictionary]]
    """Name -> site -> supervised dictionary; the first one is the ceiling."""
    floor: Mapping[PromptSite, SupervisedDictionary]
    """The ceiling's codes with random directions."""
    means: Mapping[PromptSite, Float[Tensor, " _"]]
    """Means of the fitting prompts' activations."""
    results: SupervisedScores
    """Of the whole run."""
    _bootstraps: dict[int, Bootstrap] = field(default_factory=dict)
    _prepared: dict[tuple[int, ...], list[PreparedBatch]] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[PromptSite, ...]:
        """Sites that are patched at once."""
        return self.section.sites

    @property
    def ceiling(self) -> str:
        """Name of the skyline that the gate and the trade-off are by."""
        return next(iter(self.skylines))

    def bootstrap(self, n_prompts: int) -> Bootstrap:
        """The resamples for so many prompts; equal for every score of the cross-section."""
        if n_prompts not in self._bootstraps:
            self._bootstraps[n_prompts] = Bootstrap(
                n_prompts, self.config.resamples, self.material.seed
            )
        return self._bootstraps[n_prompts]

    def mean_rows(self, activations: Activations) -> dict[PromptSite, Tensor]:
        """The mean in place of every activation."""
        return {site: self.means[site].expand_as(activations[site]) for site in self.sites}

    def mean(self, values: Float[Tensor, " prompts"]) -> Estimate:
        """The mean over prompts with its interval; NaN leaves a prompt out."""
        return self.bootstrap(len(values)).estimate(values.unsqueeze(1))

    def run(
        self,
        variants: Mapping[str, Mapping[PromptSite, Tensor]],
        prompts: Sequence[Prompt],
        description: str,
        *,
        targets: Sequence[Prompt] | None = None,
        reference: str | None = None,
    ) -> dict[str, Outcome]:
        """What the model answers in every variant."""
        return patched_outcomes(
            self.model,
            self.task,
            prompts,
            variants,
            targets=targets,
            reference=reference,
            batches=self._batches(prompts),
            description=f"{self.section.name}: {description}",
        )

    def _batches(self, prompts: Sequence[Prompt]) -> list[PreparedBatch]:
        """The prompts ready to be patched; those of the last call are kept, because all variants
        of a test, and edits that every prompt has, are about the same ones."""
        key = tuple(map(id, prompts))
        if key not in self._prepared:
            # One set at a time: keys of 2,000 prompts of 18 tokens take 0.8 GB in SmolLM2-135M.
            self._prepared.clear()
            self._prepared[key] = list(
                prepared_batches(
                    self.model, prompts, self.sites, batch_prompts=self.config.batch_prompts
                )
            )
        return self._prepared[key]

    def add(
        self, contender: str, measure: str, value: Estimate | float | int | None, **labels: Any
    ) -> None:
        """Take in a score; a bare number has no interval."""
        if not isinstance(value, Estimate):
            defined = value is not None and math.isfinite(value)
            value = Estimate(value=value if defined else None, low=None, high=None)
        self.results.scores.append(
            ContenderScore(
                section=self.section.name,
                contender=contender,
                measure=measure,
                estimate=value,
                prompt_seed=self.material.seed,
                **labels,
            )
        )

    def keep_prompts(
        self, variant: str, outcome: Outcome, *, edit: str = "", rows: Tensor | None = None
    ) -> None:
        """Keep what was predicted at all or some evaluated prompts for the per-prompt table."""
        self.results.prompt_rows.append(
            {
                "prompt": torch.arange(len(outcome.metric)) if rows is None else rows,
                "edit": edit,
                "variant": variant,
                "section": self.section.name,
                "seed": self.material.seed,
                **vars(outcome),
            }
        )


def open_section(
    model: LanguageModel,
    task: Task,
    section: CrossSection,
    material: Material,
    config: SupervisedConfig,
    results: SupervisedScores,
) -> Section:
    """Fit the supervised dictionaries of a cross-section.

    Raises:
        ConfigError: an attribute value without examples.
    """
    fit = {site: material.fit_activations[site] for site in section.sites}
    skylines = {}
    for parametrisation in config.parametrisations:
        for kind in config.skylines:
            plain = parametrisation == config.parametrisations[0]
            name = f"supervised {kind}" + ("" if plain else f" {parametrisation}")
            skylines[name] = fit_supervised(
                task, material.fit, fit, kind=kind, parametrisation=parametrisation
            )
    ceiling = next(iter(skylines.values()))
    floor = {
        site: random_decoder(dictionary, material.seed) for site, dictionary in ceiling.items()
    }
    means = {site: rows.double().mean(0).float() for site, rows in fit.items()}
    return Section(model, task, section, material, config, skylines, floor, means, results)
