"""Which heads do a task: activation patching over all heads, and cross-sections from what it finds.

For every role of a task the output z of every head is patched, one head at a time, at the role's
position with its value on the counterfactual prompt. The effect is the share of the clean metric
that is lost, 1 − patched / clean, as a ratio of means over prompts; it is negative for heads that
work against the answer. Heads are ranked by absolute effect; a role takes the strongest ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import to_plain
from saelab.errors import ConfigError, ModelError
from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.manifest import new_manifest, write_manifest
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar

from .sites import (
    KEY_VALUE_KINDS,
    CrossSection,
    PromptSite,
    gather,
    key_value_head,
    patched_outcomes,
    prepared_batches,
    write_cross_sections,
)
from .tasks import Prompt, Task, counterfactual_pairs

logger = logging.getLogger(__name__)

CIRCUIT_KIND = "supervised_circuit"
BATCH_PROMPTS = 288
LEAST_EFFECT = 0.03
"""Absolute effect below which a head has no role."""


@dataclass(frozen=True)
class RoleEffects:
    """What patching each head does for one role."""

    name: str
    """Of the role."""
    edit: tuple[str, ...]
    """Attributes that the counterfactual changes."""
    position: str
    """Where z is patched."""
    n_prompts: int
    """Prompts with a counterfactual."""
    whole: float
    """Effect of patching the residual stream before the last block at that position: what all heads
    and layers before it can do there together."""
    effects: list[list[float]]
    """By block and head, the share of the clean metric lost; negative where it rises."""
    heads: tuple[tuple[int, int], ...]
    """(layer, head) of those that take the role, strongest first."""


@dataclass(frozen=True)
class Circuit:
    """The heads of a task."""

    task: str
    model: str
    clean_metric: float
    """Mean of the task's metric over the prompts."""
    roles: tuple[RoleEffects, ...]


def find_circuit(
    model: LanguageModel,
    task: Task,
    *,
    n_prompts: int = 32,
    seed: int = 0,
    least_effect: float = LEAST_EFFECT,
) -> Circuit:
    """Search the heads of a task's roles, on prompts of the split "train".

    Raises:
        ConfigError: a task without roles.
        ModelError: a model without heads, or one that cannot do the task.
    """
    if not task.roles:
        raise ConfigError(f"task {task.name} declares no roles: name the sites yourself")
    if model.n_heads * model.d_head == 0:
        raise ModelError(f"{model.name} has no attention heads to search")
    prompts = task.sample(n_prompts, "train", seed)
    clean = patched_outcomes(model, task, prompts, {"clean": {}})["clean"]
    clean_metric = float(clean.metric.double().mean())
    if clean_metric <= 0:
        raise ModelError(
            f"{model.name} has a mean metric of {clean_metric:.3g} on task {task.name}: a model "
            "that cannot do the task has no circuit for it; choose another task or model"
        )
    roles: dict[str, RoleEffects] = {}
    with progress_bar(len(task.roles) * model.n_layers, "patching heads", "layer") as bar:
        for role in task.roles:
            rows, targets = counterfactual_pairs(task, prompts, role.edit, seed)
            if not targets:
                raise ConfigError(
                    f"task {task.name}: no prompt has a counterfactual in {role.edit}"
                )
            sources = [prompts[row] for row in rows.tolist()]
            effects, whole = _patch_every_head(model, task, sources, targets, role.position, bar)
            taken = {head for name in role.not_in for head in roles[name].heads}
            order = effects.abs().flatten().argsort(descending=True, stable=True).tolist()
            heads = [divmod(index, model.n_heads) for index in order]
            strong = [h for h in heads if abs(effects[h]) >= least_effect and h not in taken]
            heads = tuple(strong[: role.n_heads])
            logger.info("role %s: %s", role.name, _in_words(heads))
            roles[role.name] = RoleEffects(
                role.name,
                role.edit,
                role.position,
                len(sources),
                whole,
                [[round(effect, 6) for effect in row] for row in effects.tolist()],
                heads,
            )
    return Circuit(task.name, model.name, clean_metric, tuple(roles.values()))


def _in_words(heads: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"


@torch.no_grad()
def _patch_every_head(
    model: LanguageModel,
    task: Task,
    prompts: Sequence[Prompt],
    targets: Sequence[Prompt],
    position: str,
    bar: Any,
) -> tuple[Float[Tensor, "n_layers n_heads"], float]:
    """Effects of patching each head's z at a position, and of the residual stream there before the
    last block; `bar` is told of every layer that is done."""
    last = PromptSite("resid_pre", model.n_layers - 1, None, position)
    layers = [
        [PromptSite("z", layer, head, position) for head in range(model.n_heads)]
        for layer in range(model.n_layers)
    ]
    sites = [site for heads in layers for site in heads]
    before, after = gather(model, prompts, sites), gather(model, targets, [*sites, last])
    # Every prompt comes once per head, and one pass patches all of them, each in its own head.
    n = len(prompts)
    repeated = [prompt for _ in range(model.n_heads) for prompt in prompts]
    clean, whole = 0.0, 0.0
    sums = torch.zeros(model.n_layers, model.n_heads, dtype=torch.float64)
    for batch in prepared_batches(model, repeated, [*sites, last], batch_prompts=BATCH_PROMPTS):
        row, head = batch.rows % n, batch.rows // n
        for layer, heads in enumerate(layers):
            edits = {
                site: torch.where((head == site.head)[:, None], after[site][row], before[site][row])
                for site in heads
            }
            metric = task.metric(batch.logits(edits), batch.prompts).double().cpu()
            sums[layer].index_add_(0, head, metric)
            bar.update(len(batch.rows) / len(repeated))
        clean += float(task.metric(batch.logits({}), batch.prompts).double().sum())
        ended = batch.logits({last: after[last][row]})
        whole += float(task.metric(ended, batch.prompts).double().sum())
    # The sums of one head are over n prompts, those of no head over all repetitions.
    return 1 - sums * model.n_heads / clean, 1 - whole / clean


def cross_sections_of(
    model: LanguageModel, task: Task, heads: Mapping[str, Sequence[tuple[int, int]]]
) -> list[CrossSection]:
    """The cross-sections of a task from the heads of its roles; those without heads are left out.

    Query heads that share keys and values give one site of kind k or v.
    """
    sections = []
    for template in task.cross_sections:
        members = sorted({head for role in template.roles for head in heads.get(role, ())})
        sites = {
            PromptSite(kind, layer, key_value_head(model, head), position)
            if kind in KEY_VALUE_KINDS
            else PromptSite(kind, layer, head, position)
            for kind, position in template.parts
            for layer, head in members
        }
        if sites:
            sections.append(CrossSection(template.name, tuple(sorted(sites)), template.edits))
        else:
            logger.warning("cross-section %r has no heads and is left out", template.name)
    return sections


def circuit_charts(circuit: Circuit) -> list[Chart]:
    """One heat map of heads per role."""
    return [_heat_map(role) for role in circuit.roles]


def _heat_map(role: RoleEffects) -> Chart:
    effects, position = role.effects, role.position
    n_layers, n_heads = len(effects), len(effects[0])
    edited = " and ".join(role.edit)
    flat = [(effects[i][j], i, j) for i in range(n_layers) for j in range(n_heads)]
    top = sorted(flat, key=lambda effect: -abs(effect[0]))[:5]
    named = ", ".join(f"{i}.{j} ({value:.3f})" for value, i, j in top)
    return Chart(
        name=f"heads_{role.name}",
        title=f"{role.name}: heads at {position}, {edited} changed",
        caption=f"Share of the clean metric that is lost when a head's output z at {position} is "
        f"replaced by its value on a prompt with other {edited}; negative where the metric rises. "
        f"Marked: heads that take the role. {role.n_prompts} prompts.",
        x=Axis(title="block"),
        y=Axis(title="head"),
        series=(
            Series(
                name="effect",
                mark="heat map",
                x=list(range(n_layers)),
                y=list(range(n_heads)),
                z=[list(row) for row in zip(*effects, strict=True)],
            ),
            Series(
                name="heads of the role",
                mark="dots",
                x=[layer for layer, _ in role.heads],
                y=[head for _, head in role.heads],
                style=6,
            ),
        ),
        summary=f"Heat map of {n_layers} blocks by {n_heads} heads; largest effects: {named}.",
        colour="effect",
        wide=True,
    )


def write_circuit_page(path: Path, circuit: Circuit) -> Path:
    """The page of a circuit search: a heat map and a row of a table per role."""
    from saelab.report.draw import draw
    from saelab.report.page import Report

    report = Report(
        f"Heads of {circuit.model} that do {circuit.task}",
        f"Mean metric of the clean runs: {circuit.clean_metric:.3f}.",
    )
    report.add_figures([draw(chart) for chart in circuit_charts(circuit)])
    report.add_table(
        "Heads by role, strongest first",
        ["role", "edited attributes", "position", "prompts", "effect of the whole stream", "heads"],
        [
            [r.name, "+".join(r.edit), r.position, r.n_prompts, r.whole, _in_words(r.heads)]
            for r in circuit.roles
        ],
    )
    return report.write(path)


def find_sites(
    path: Path,
    model: LanguageModel,
    task: Task,
    *,
    n_prompts: int = 32,
    seed: int = 0,
    least_effect: float = LEAST_EFFECT,
) -> Path:
    """Search a model's heads for a task's circuit and write its cross-sections to a JSON file.

    The effects go beside it as `NAME.circuit.json`.

    Returns:
        The page with the heat maps.

    Raises:
        ConfigError: the task declares no roles.
        ModelError: a model that cannot do the task.
    """
    circuit = find_circuit(model, task, n_prompts=n_prompts, seed=seed, least_effect=least_effect)
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = new_manifest(
        CIRCUIT_KIND,
        seed=seed,
        config={"n_prompts": n_prompts, "least_effect": least_effect},
        made_from={"model": circuit.model, "task": circuit.task},
    )
    write_manifest(path.with_suffix(".circuit.json"), manifest | {"circuit": to_plain(circuit)})
    page = write_circuit_page(path.with_suffix(".html"), circuit)
    write_cross_sections(
        path,
        cross_sections_of(model, task, {role.name: role.heads for role in circuit.roles}),
        model=model.name,
        task=task.name,
        found_by={"n_prompts": n_prompts, "seed": seed},
    )
    return page
