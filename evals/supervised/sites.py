"""A site: one vector per prompt inside the model, such as the output of a head at a named token.

A site is a hook point, a head where the hook point has heads, and a named position that each prompt
resolves for itself. A cross-section is a set of sites that are patched at once.

Queries and keys are those before any rotation by position, so their vectors mean the same at every
position. Where several query heads share a key/value head, sites of kind k and v number the
key/value heads, and a patch there reaches every query head of the group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ArtifactError, ConfigError, ModelError
from saelab.formats.files import read_json, write_json
from saelab.formats.manifest import check_manifest, new_manifest
from saelab.model.language_model import LanguageModel
from saelab.model.patched_runs import PatchedRuns
from saelab.progress import progress_bar

from .tasks import Prompt, Task, most_likely_of, padded_tokens, positions_of

HOOKS = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "q": "blocks.{layer}.attn.hook_q",
    "k": "blocks.{layer}.attn.hook_k",
    "v": "blocks.{layer}.attn.hook_v",
    "z": "blocks.{layer}.attn.hook_z",
}
"""Kind of site -> hook point."""
HEAD_KINDS = ("q", "k", "v", "z")
KEY_VALUE_KINDS = ("k", "v")
SITES_KIND = "supervised_sites"
SCHEMA_VERSION = 1
_TEXT = re.compile(r"([a-z_]+)\.(\d+)(?:\.(\d+))?@(.+)")


@dataclass(frozen=True, order=True)
class PromptSite:
    """One vector per prompt inside the model."""

    kind: str
    """One of `HOOKS`."""
    layer: int
    """The block."""
    head: int | None
    """Of q and z the query head, of k and v the key/value head; None elsewhere."""
    position: str
    """A named position of the task's prompts."""

    def __post_init__(self) -> None:
        if self.kind not in HOOKS:
            raise ConfigError(
                f"there is no site of kind {self.kind!r}: choose one of {', '.join(HOOKS)}"
            )
        if (self.head is not None) != (self.kind in HEAD_KINDS):
            has = "needs a head" if self.kind in HEAD_KINDS else "has no heads"
            raise ConfigError(f"a site of kind {self.kind!r} {has}; head is {self.head}")

    @property
    def hook_point(self) -> str:
        """Where in the model it is."""
        return HOOKS[self.kind].format(layer=self.layer)

    def __str__(self) -> str:
        head = "" if self.head is None else f".{self.head}"
        return f"{self.kind}.{self.layer}{head}@{self.position}"

    @classmethod
    def parse(cls, text: str) -> PromptSite:
        """The site that a text such as "z.9.6@end" or "resid_post.12@s2" names.

        Raises:
            ConfigError: it names none.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"{text!r} names no site: write KIND.LAYER@POSITION, or KIND.LAYER.HEAD@POSITION "
                f"for {', '.join(HEAD_KINDS)}, such as 'z.9.6@end'"
            )
        kind, layer, head, position = match.groups()
        return cls(kind, int(layer), None if head is None else int(head), position)


@dataclass(frozen=True)
class CrossSection:
    """Sites that are patched at once, and the attribute sets worth editing there."""

    name: str
    sites: tuple[PromptSite, ...]
    edits: tuple[tuple[str, ...], ...]


def site_width(model: LanguageModel, site: PromptSite) -> int:
    """Entries of the site's vector.

    Raises:
        ModelError: the model has no such block or head.
    """
    if site.layer >= model.n_layers:
        raise ModelError(
            f"site {site} is in block {site.layer}, but {model.name} has blocks 0 to "
            f"{model.n_layers - 1}"
        )
    width = model.width_at(site.hook_point)
    if site.head is None:
        return width
    heads, which = model.n_heads, "query heads"
    if site.kind in KEY_VALUE_KINDS:
        heads, which = model.n_key_value_heads, "key/value heads"
    if site.head >= heads:
        raise ModelError(
            f"site {site} is head {site.head}, but a block of {model.name} has {heads} {which}, "
            "counted from 0"
        )
    if width != heads * model.d_head:
        raise ModelError(
            f"{site.hook_point} of {model.name} has width {width}, not {heads} heads of "
            f"{model.d_head}: sites of single heads cannot be used in this model"
        )
    return model.d_head


def key_value_head(model: LanguageModel, query_head: int) -> int:
    """The key/value head that a query head reads."""
    return query_head // (model.n_heads // model.n_key_value_heads)


def check_sites(
    model: LanguageModel, positions: Sequence[str], sites: Sequence[PromptSite]
) -> None:
    """Refuse sites that the model or the task's prompts do not have.

    Raises:
        ConfigError: a position that the task does not name, no site, or one named twice.
        ModelError: a block or head that the model does not have.
    """
    if not sites:
        raise ConfigError("no site was given: name at least one")
    problems = [
        f"site {site}: the task has no position {site.position!r}; choose one of "
        f"{', '.join(positions)}"
        for site in sites
        if site.position not in positions
    ]
    problems += [
        f"site {site} is given twice" for site in set(sites) if list(sites).count(site) > 1
    ]
    if problems:
        raise ConfigError(problems)
    for site in sites:
        site_width(model, site)


def residual_cross_sections(
    hook_point: str, positions: Sequence[str], edits: Sequence[tuple[str, ...]]
) -> list[CrossSection]:
    """One cross-section per position at a hook point without heads, such as a residual stream.

    Patching the whole residual stream at a position is a full cut there: what is kept or lost is
    everything the model knows at that token at that depth.

    Raises:
        ConfigError: the hook point is none that a site can be at.
    """
    layer = next((word for word in hook_point.split(".") if word.isdigit()), "")
    kinds = [kind for kind, hook in HOOKS.items() if hook.format(layer=layer) == hook_point]
    if not kinds or kinds[0] in HEAD_KINDS:
        allowed = [hook for kind, hook in HOOKS.items() if kind not in HEAD_KINDS]
        raise ConfigError(
            f"hook point {hook_point!r} has no residual site: it must be one of "
            f"{', '.join(hook.format(layer='N') for hook in allowed)}"
        )
    sites = [PromptSite(kinds[0], int(layer), None, position) for position in positions]
    return [CrossSection(str(site), (site,), tuple(edits)) for site in sites]


def head_slice(model: LanguageModel, site: PromptSite) -> slice:
    """The entries of the hook point's flattened activation that are the site's."""
    if site.head is None:
        return slice(None)
    return slice(site.head * model.d_head, (site.head + 1) * model.d_head)


def gather(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    sites: Sequence[PromptSite],
    *,
    batch_prompts: int = 64,
) -> dict[PromptSite, Float[Tensor, "prompts d"]]:
    """The activations of prompts at sites, float32 on the CPU, from passes that stop early.

    Raises:
        ModelError: a site that the model does not have.
        ConfigError: a position that the prompts do not have.
    """
    if not sites:
        return {}
    hooks = sorted({site.hook_point for site in sites})
    widths = {site: site_width(model, site) for site in sites}
    rows_at = {site: torch.empty(len(prompts), width) for site, width in widths.items()}
    with progress_bar(len(prompts), "activations at sites", "prompt") as bar:
        for start in range(0, len(prompts), batch_prompts):
            batch = prompts[start : start + batch_prompts]
            positions = {site: positions_of(batch, site.position) for site in sites}
            # What comes after the last of the positions has no effect on them.
            end = 1 + max(int(index.max()) for index in positions.values())
            captured = model.capture(padded_tokens(batch)[:, :end], hooks)
            rows = torch.arange(len(batch))
            for site, index in positions.items():
                x = captured[site.hook_point][rows, index]
                rows_at[site][start : start + len(batch)] = x[:, head_slice(model, site)].float()
            bar.update(len(batch))
    return rows_at


def write_cross_sections(
    path: Path, sections: Sequence[CrossSection], *, model: str, task: str, found_by: Any = None
) -> None:
    """Write cross-sections for `--sites FILE`.

    Args:
        found_by: settings of the search; None where a person chose them.
    """
    manifest = new_manifest(
        SITES_KIND, SCHEMA_VERSION, seed=None, config=found_by, made_from={"model": model}
    )
    rows = [
        {
            "name": section.name,
            "sites": [str(site) for site in section.sites],
            "edits": [list(edit) for edit in section.edits],
        }
        for section in sections
    ]
    write_json(path, manifest | {"task": task, "cross_sections": rows})


def read_cross_sections(path: Path, *, task: str | None = None) -> list[CrossSection]:
    """Read cross-sections that `write_cross_sections` or a person wrote.

    Args:
        task: the task they must be for; None: any.

    Raises:
        ArtifactError: the file is missing, of another kind or for another task.
        ConfigError: a site in it that is no site.
    """
    content = check_manifest(read_json(path), path, SITES_KIND, SCHEMA_VERSION)
    if task is not None and content.get("task") != task:
        raise ArtifactError(
            f"{path} has the sites of task {content.get('task')!r}, not of {task!r}: find them "
            "again for this task"
        )
    try:
        return [
            CrossSection(
                row["name"],
                tuple(PromptSite.parse(text) for text in row["sites"]),
                tuple(tuple(edit) for edit in row["edits"]),
            )
            for row in content["cross_sections"]
        ]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} does not list cross-sections with name, sites and edits ({error!r}): it was "
            "edited; find the sites again"
        ) from None


@dataclass(frozen=True)
class PreparedBatch:
    """Prompts that are ready to be run many times with sites patched."""

    rows: Int[Tensor, " batch"]
    """Indices among the prompts that were given."""
    prompts: list[Prompt]
    """These prompts."""
    model: LanguageModel
    runs: PatchedRuns

    @torch.no_grad()
    def logits(
        self, edits: Mapping[PromptSite, Float[Tensor, "batch _"]]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Float32 logits at the end of each prompt, with every edit in one pass.

        Args:
            edits: site -> what replaces its activation; none: the clean run.
        """

        def changed(x: Tensor, sites: list[PromptSite]) -> Tensor:
            x = x.clone()
            rows = torch.arange(len(x), device=x.device)
            for site in sites:
                positions = positions_of(self.prompts, site.position) - self.runs.first_position
                view = x[..., head_slice(self.model, site)]
                view[rows, positions.to(x.device)] = edits[site].to(dtype=x.dtype, device=x.device)
            return x

        by_hook: dict[str, list[PromptSite]] = {}
        for site in edits:
            by_hook.setdefault(site.hook_point, []).append(site)
        changes = {hook: partial(changed, sites=sites) for hook, sites in by_hook.items()}
        return self.runs.logits(changes).float()


@torch.no_grad()
def prepared_batches(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    sites: Sequence[PromptSite],
    *,
    batch_prompts: int = 64,
) -> Iterator[PreparedBatch]:
    """Batches of prompts for runs with some of the sites patched.

    Raises:
        ModelError: a site at a hook point that cannot be patched.
        ConfigError: a position that the prompts do not have.
    """
    first = [positions_of(prompts, site.position) for site in sites]
    starts = torch.stack(first).amin(0) if first else torch.zeros(len(prompts), dtype=torch.int64)
    lengths = [len(prompt.tokens) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda row: (int(starts[row]), lengths[row]))
    hooks = sorted({site.hook_point for site in sites})
    for begin in range(0, len(order), batch_prompts):
        rows = torch.tensor(order[begin : begin + batch_prompts])
        batch = [prompts[row] for row in rows.tolist()]
        runs = model.prepare_patches(
            padded_tokens(batch), positions_of(batch, "end"), hooks, int(starts[rows].min())
        )
        yield PreparedBatch(rows, batch, model, runs)


@dataclass(frozen=True)
class Outcome:
    """What the model answers in one variant, in the order of the prompts."""

    metric: Float[Tensor, " prompts"]
    """The task's metric with each prompt's answers."""
    prediction: Int[Tensor, " prompts"]
    """The predicted token over the whole vocabulary."""
    answer_prediction: Int[Tensor, " prompts"]
    """The token with the largest logit among the task's answers."""
    target_metric: Float[Tensor, " prompts"] | None = None
    """The metric with the answers of the counterfactual; None without one."""
    kl: Float[Tensor, " prompts"] | None = None
    """KL(reference ‖ variant) over the vocabulary, in nats; None without a reference."""


def patched_outcomes(
    model: LanguageModel,
    task: Task,
    prompts: Sequence[Prompt],
    variants: Mapping[str, Mapping[PromptSite, Float[Tensor, "prompts _"]]],
    *,
    targets: Sequence[Prompt] | None = None,
    reference: str | None = None,
    batch_prompts: int = 64,
    batches: Iterable[PreparedBatch] | None = None,
    description: str = "patched runs",
) -> dict[str, Outcome]:
    """Run prompts once per variant and keep what the model answers.

    Args:
        variants: name -> site -> what replaces its activation, a row per prompt; no site: the
            clean run.
        targets: counterfactuals, whose answers give `target_metric`.
        reference: the variant that the divergences are from.
        batch_prompts: prompts in one pass; the numbers do not depend on it beyond rounding.
        batches: these prompts as `prepared_batches` prepares them for all sites, where several
            calls are about them; None: they are prepared for this call.
        description: beside the progress bar.

    Raises:
        ModelError: a site at a hook point that cannot be patched.
    """
    parts: dict[str, dict[str, list[Tensor]]] = {name: {} for name in variants}
    order = []
    # The reference comes first: the others are compared with it.
    names = sorted(variants, key=lambda name: name != reference)
    if batches is None:
        sites = list(dict.fromkeys(site for edits in variants.values() for site in edits))
        batches = prepared_batches(model, prompts, sites, batch_prompts=batch_prompts)
    with progress_bar(len(prompts) * len(variants), description, "prompt") as bar:
        for batch in batches:
            order.append(batch.rows)
            compared: Tensor | None = None
            for name in names:
                edits = {site: values[batch.rows] for site, values in variants[name].items()}
                logits = batch.logits(edits)
                kept = {
                    "metric": task.metric(logits, batch.prompts),
                    "prediction": task.predict(logits),
                    "answer_prediction": most_likely_of(logits, task.answer_tokens),
                }
                if targets is not None:
                    aims = [targets[row] for row in batch.rows.tolist()]
                    kept["target_metric"] = task.metric(logits, aims)
                if reference is not None:
                    log_p = logits.log_softmax(-1)
                    compared = log_p if compared is None else compared
                    kept["kl"] = (compared.exp() * (compared - log_p)).sum(-1).clamp_min(0)
                for field, value in kept.items():
                    parts[name].setdefault(field, []).append(value.cpu())
                bar.update(len(batch.rows))
    back = torch.cat(order).argsort()
    return {
        name: Outcome(**{field: torch.cat(values)[back] for field, values in fields.items()})
        for name, fields in parts.items()
    }
