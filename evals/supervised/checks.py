"""What must hold before a score means anything: coverage, dependence, base accuracy, the gate.

The thresholds are the project's choice; the checks are those of arXiv 2405.08366, footnotes 2 and
5, and of its general interface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, ModelError
from saelab.model.language_model import LanguageModel

from .sites import patched_outcomes
from .suite import SupervisedConfig
from .tasks import Prompt, Task

BASE_PROMPTS = 200
"""Prompts on which the model must show that it can do the task."""
ENOUGH_PROMPTS = 30
"""Fitting prompts that every attribute value should have."""
STRONG_DEPENDENCE = 0.1
"""Cramér's V from which mean features count what two attributes share twice."""
FEWEST_RIGHT = 0.75
"""Share of prompts with a positive metric below which a model cannot do a task."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Least scores of the supervised dictionary for other dictionaries to be judged at a place."""

    sufficiency: float = 0.8
    """Of test 1."""
    necessity: float = 0.8
    """Of test 1."""
    accuracy: float = 0.8
    """Edit accuracy of test 2."""
    accuracy_over_noop: float = 0.1
    """By how much that must exceed the accuracy without an intervention."""


GATE = Gate()


@dataclass(frozen=True)
class Coverage:
    """How many prompts the values of an attribute have.

    Attributes:
        fewest: prompts with the rarest value.
        missing: values without a prompt.
        rare: values with fewer prompts than `ENOUGH_PROMPTS`, the missing ones included.
    """

    fewest: int
    missing: tuple[str, ...]
    rare: tuple[str, ...]


def coverage(task: Task, prompts: Sequence[Prompt]) -> dict[str, Coverage]:
    """How often each value of each attribute occurs among prompts."""
    found = {}
    for name, values in task.attributes.items():
        counts = Counter(prompt.labels[name] for prompt in prompts)
        found[name] = Coverage(
            min(counts[value] for value in values),
            tuple(value for value in values if not counts[value]),
            tuple(value for value in values if counts[value] < ENOUGH_PROMPTS),
        )
    return found


def require_coverage(task: Task, prompts: Sequence[Prompt]) -> dict[str, Coverage]:
    """The coverage, if every value has a prompt.

    Raises:
        ConfigError: naming every attribute with a value that has none.
    """
    found = coverage(task, prompts)
    problems = [
        f"task {task.name}: {len(one.missing)} of {len(task.attributes[name])} values of {name!r} "
        f"have no example among {len(prompts)} prompts ({', '.join(one.missing[:3])} …): take more "
        "prompts"
        for name, one in found.items()
        if one.missing
    ]
    if problems:
        raise ConfigError(problems)
    return found


def dependence(task: Task, prompts: Sequence[Prompt]) -> dict[tuple[str, str], float]:
    """Cramér's V of every pair of attributes, corrected for chance: 0 independent, 1 determined."""
    found = {}
    for first, second in combinations(task.attributes, 2):
        rows = {value: index for index, value in enumerate(task.attributes[first])}
        columns = {value: index for index, value in enumerate(task.attributes[second])}
        table = torch.zeros(len(rows), len(columns), dtype=torch.float64)
        for prompt in prompts:
            table[rows[prompt.labels[first]], columns[prompt.labels[second]]] += 1
        found[first, second] = cramers_v(table)
    return found


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


@dataclass(frozen=True)
class BaseAccuracy:
    """How well the model does a task by itself.

    Attributes:
        n_prompts: prompts it was tried on.
        metric: mean of the task's metric.
        positive: share of prompts with a metric above 0; a third answer may still be likelier.
        predicted: share of prompts whose prediction is a right answer.
    """

    n_prompts: int
    metric: float
    positive: float
    predicted: float


def base_accuracy(
    model: LanguageModel, task: Task, prompts: Sequence[Prompt], *, batch_prompts: int = 64
) -> BaseAccuracy:
    """Let the model answer prompts."""
    outcome = patched_outcomes(
        model, task, prompts, {"clean": {}}, batch_prompts=batch_prompts, description="clean runs"
    )["clean"]
    right = [
        token in prompt.correct
        for token, prompt in zip(outcome.prediction.tolist(), prompts, strict=True)
    ]
    return BaseAccuracy(
        len(prompts),
        float(outcome.metric.double().mean()),
        float((outcome.metric > 0).double().mean()),
        sum(right) / len(right),
    )


def require_able(model: LanguageModel, task: Task, accuracy: BaseAccuracy) -> None:
    """Refuse to judge anything on a task that the model cannot do.

    Raises:
        ModelError: too few prompts have a positive metric.
    """
    if accuracy.positive < FEWEST_RIGHT:
        raise ModelError(
            f"{model.name} prefers the right answer in {accuracy.positive:.0%} of "
            f"{accuracy.n_prompts} prompts of task {task.name}, and at least {FEWEST_RIGHT:.0%} "
            "are needed to judge anything on it: choose another task or model"
        )


def strong_pairs(values: Mapping[tuple[str, str], float]) -> list[tuple[str, str]]:
    """Pairs of attributes that depend on each other too much for mean features."""
    return [pair for pair, value in values.items() if value > STRONG_DEPENDENCE]


def check_task(
    model: LanguageModel, task: Task, config: SupervisedConfig, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """What must be known before numbers are believed: coverage, dependence, base accuracy.

    Returns:
        (what was found, notes for the reader).

    Raises:
        ConfigError: an attribute value without examples.
        ModelError: a model that cannot do the task.
    """
    fit = task.sample(config.n_fit, "train", seed)
    covered = require_coverage(task, fit)
    values = dependence(task, fit)
    few = task.sample(min(BASE_PROMPTS, config.n_eval), config.eval_split, seed)
    able = base_accuracy(model, task, few, batch_prompts=config.batch_prompts)
    require_able(model, task, able)
    notes = []
    rare = {name: len(found.rare) for name, found in covered.items() if found.rare}
    if rare:
        counted = ", ".join(f"{count} of {name}" for name, count in rare.items())
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
    fewest = {name: found.fewest for name, found in covered.items()}
    return {
        "fitting prompts of the rarest value": fewest,
        "dependence (Cramér's V)": {" and ".join(p): round(v, 4) for p, v in values.items()},
        "model: prompts tried": able.n_prompts,
        "model: mean metric": able.metric,
        "model: share with a positive metric": able.positive,
        "model: share predicted right": able.predicted,
    }, notes
