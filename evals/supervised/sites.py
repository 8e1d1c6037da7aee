"""A site: one vector per prompt inside the model, such as the output of a head at a named token.

A site is a hook point, a head where the hook point has heads, and a named position that each prompt
resolves for itself. A cross-section is a set of sites that are patched at once.

Queries and keys are those before any rotation by position, so their vectors mean the same at every
position. Where several query heads share a key/value head, sites of kind k and v number the
key/value heads, and a patch there reaches every query head of the group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError, ConfigError, ModelError
from saelab.formats.files import read_json, write_json
from saelab.formats.manifest import check_manifest, new_manifest
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar

from .tasks.interface import Prompt, padded_tokens, positions_of

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
SITE_KINDS = tuple(HOOKS)
HEAD_KINDS = ("q", "k", "v", "z")
KEY_VALUE_KINDS = ("k", "v")
SITES_KIND = "supervised_sites"
SCHEMA_VERSION = 1
_TEXT = re.compile(r"([a-z_]+)\.(\d+)(?:\.(\d+))?@(.+)")


@dataclass(frozen=True, order=True)
class Site:
    """One vector per prompt inside the model.

    Attributes:
        kind: one of `SITE_KINDS`.
        layer: the block.
        head: of q and z the query head, of k and v the key/value head; None elsewhere.
        position: a named place of the task's prompts.
    """

    kind: str
    layer: int
    head: int | None
    position: str

    def __post_init__(self) -> None:
        if self.kind not in HOOKS:
            raise ConfigError(
                f"there is no site of kind {self.kind!r}: choose one of {', '.join(SITE_KINDS)}"
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
    def parse(cls, text: str) -> Site:
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
    sites: tuple[Site, ...]
    edits: tuple[tuple[str, ...], ...]


def site_width(model: LanguageModel, site: Site) -> int:
    """Entries of the site's vector.

    Raises:
        ModelError: the model has no such place.
    """
    if site.layer >= model.n_layers:
        raise ModelError(
            f"site {site} is in block {site.layer}, but {model.name} has blocks 0 to "
            f"{model.n_layers - 1}"
        )
    if site.head is None:
        return model.width_at(site.hook_point)
    heads = model.n_key_value_heads if site.kind in KEY_VALUE_KINDS else model.n_heads
    if site.head >= heads:
        which = "key/value heads" if site.kind in KEY_VALUE_KINDS else "query heads"
        raise ModelError(
            f"site {site} is head {site.head}, but a block of {model.name} has {heads} {which}, "
            "counted from 0"
        )
    width = model.width_at(site.hook_point)
    if width != heads * model.d_head:
        raise ModelError(
            f"{site.hook_point} of {model.name} has width {width}, not {heads} heads of "
            f"{model.d_head}: sites of single heads cannot be used in this model"
        )
    return model.d_head


def key_value_head(model: LanguageModel, query_head: int) -> int:
    """The key/value head that a query head reads."""
    return query_head // (model.n_heads // model.n_key_value_heads)


def check_sites(model: LanguageModel, positions: Sequence[str], sites: Sequence[Site]) -> None:
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
    sites = [Site(kinds[0], int(layer), None, position) for position in positions]
    return [CrossSection(str(site), (site,), tuple(edits)) for site in sites]


def head_slice(model: LanguageModel, site: Site) -> slice:
    """The entries of the hook point's flattened activation that are the site's."""
    if site.head is None:
        return slice(None)
    return slice(site.head * model.d_head, (site.head + 1) * model.d_head)


def gather(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    sites: Sequence[Site],
    *,
    batch_prompts: int = 64,
) -> dict[Site, Float[Tensor, "prompts d"]]:
    """The activations of prompts at sites, float32 on the CPU, from passes that stop early.

    Raises:
        ModelError: a site that the model does not have.
        ConfigError: a position that the prompts do not have.
    """
    if not sites:
        return {}
    hooks = sorted({site.hook_point for site in sites})
    widths = {site: site_width(model, site) for site in sites}
    found = {site: torch.empty(len(prompts), width) for site, width in widths.items()}
    with progress_bar(len(prompts), "activations at sites", "prompt") as bar:
        for start in range(0, len(prompts), batch_prompts):
            batch = prompts[start : start + batch_prompts]
            places = {site: positions_of(batch, site.position) for site in sites}
            # What comes after the last of the positions has no effect on them.
            end = 1 + max(int(place.max()) for place in places.values())
            captured = model.capture(padded_tokens(batch)[:, :end], hooks)
            rows = torch.arange(len(batch))
            for site, place in places.items():
                x = captured[site.hook_point][rows, place]
                found[site][start : start + len(batch)] = x[:, head_slice(model, site)].float()
            bar.update(len(batch))
    return found


def write_cross_sections(
    path: Path, sections: Sequence[CrossSection], *, model: str, task: str, found_by: Any = None
) -> None:
    """Write cross-sections for `--sites FILE`.

    Args:
        path: the JSON file.
        sections: what to write.
        model: the model they are of.
        task: the task they were found for.
        found_by: how they were found, as plain values; None where a person chose them.
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
        path: the JSON file.
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
                tuple(Site.parse(text) for text in row["sites"]),
                tuple(tuple(edit) for edit in row["edits"]),
            )
            for row in content["cross_sections"]
        ]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} does not list cross-sections with name, sites and edits ({error!r}): it was "
            "edited; find the sites again"
        ) from None
