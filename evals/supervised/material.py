"""Prompts, counterfactuals and activations that all cross-sections of a run share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.model.language_model import LanguageModel

from .config import SupervisedConfig
from .predicates import Family, families_of
from .sites import CrossSection, Site, gather
from .tasks.interface import Prompt, Task, counterfactual_pairs

Activations = Mapping[Site, Float[Tensor, "_ _"]]


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
        place = {value: index for index, value in enumerate(values)}
        found[name] = torch.tensor([place.get(one.labels[name], -1) for one in prompts])
    return found
