"""What the tests at one cross-section share: sites, skylines, conditions and findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.model.language_model import LanguageModel
from saelab.stats.bootstrap import Bootstrap, Estimate

from .dictionaries import SupervisedDictionary, fit_supervised, random_decoder
from .predicates import Family, families_of
from .scores import Score
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
    families: list[Family]
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
    found = {}
    for name, values in task.attributes.items():
        numbers = {value: index for index, value in enumerate(values)}
        found[name] = torch.tensor([numbers.get(prompt.labels[name], -1) for prompt in prompts])
    return found


Variants = Mapping[str, Mapping[PromptSite, Tensor]]


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
    scores: list[Score] = field(default_factory=list)
    prompt_rows: list[dict[str, Any]] = field(default_factory=list)
    """Columns of the per-prompt table, one entry per variant."""
    notes: list[str] = field(default_factory=list)
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

    def mean(self, values: Float[Tensor, " prompts"]) -> Estimate:
        """The mean over prompts with its interval; NaN leaves a prompt out."""
        return self.bootstrap(len(values)).estimate(values.unsqueeze(1))

    def run(
        self,
        variants: Variants,
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
            number = None if value is None else value if isinstance(value, int) else float(value)
            if isinstance(number, float) and not torch.isfinite(torch.tensor(number)):
                number = None
            value = Estimate(value=number, low=None, high=None)
        self.scores.append(
            Score(
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
        self.prompt_rows.append(
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
    return Section(model, task, section, material, config, skylines, floor, means)


def mean_rows(section: Section, activations: Activations) -> dict[PromptSite, Tensor]:
    """The mean in place of every activation."""
    return {site: section.means[site].expand_as(activations[site]) for site in section.sites}
