"""Which dictionaries are runs of the same thing, and are therefore compared with one another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from saelab.config import flat
from saelab.dictionary import SavedDictionary
from saelab.dictionary.storage import site_of
from saelab.errors import ConfigError

from ..alike import differing, twins

MEASURED = ("measured_l0", "fvu_on_training_rows", "dead_fraction")
"""What the training record says of the outcome, not of the settings."""


@dataclass(frozen=True, kw_only=True)
class GroupKey:
    """What dictionaries of a group have in common."""

    method: str
    options: str
    """The method's options as JSON."""
    architecture: str
    d_sae: int
    target_l0: int | float | None
    """None where training had no target."""
    hook_point: str
    model: str
    """Content hash of the model, or its name where no hash is recorded."""


@dataclass(frozen=True)
class Group:
    """Dictionaries that differ in their seed."""

    key: GroupKey
    label: str
    """For people; no two groups of a call share it."""
    members: list[int]
    """Indices in the list of dictionaries given."""
    runs: list[str]
    """What tells the members apart: "seed 0", or the folder's name where no seed is recorded."""


def form_groups(dictionaries: Sequence[SavedDictionary], *, across: bool) -> list[Group]:
    """Divide dictionaries into groups; `across`: whether these are compared with one another.

    Raises:
        ConfigError: with every reason why there is nothing to compare, or nothing comparable.
    """
    by_key: dict[GroupKey, list[int]] = {}
    for index, saved in enumerate(dictionaries):
        by_key.setdefault(_key_of(saved), []).append(index)
    groups = [
        Group(key, label, by_key[key], _runs([dictionaries[index] for index in by_key[key]]))
        for key, label in zip(by_key, _labels(list(by_key)), strict=True)
    ]
    problems = [
        f"{saved.folder} is the same dictionary as {twin.folder}: name it once"
        for twin, saved in twins(dictionaries, lambda saved: saved.content_hash)
    ]
    if not across:
        problems += _not_comparable(dictionaries, groups)
    elif len(dictionaries) < 2:
        problems.append(
            f"{dictionaries[0].folder} is the only dictionary: name at least two to compare"
        )
    elif len(widths := sorted({saved.dictionary.d_out for saved in dictionaries})) > 1:
        problems.append(
            f"dictionaries of widths {widths} cannot be compared: a cosine needs directions of the "
            "same space; give dictionaries of one hook point, or of hook points of one width"
        )
    for group in groups:
        problems += _same_seed(dictionaries, group)
    if problems:
        raise ConfigError(problems)
    return groups


def _key_of(saved: SavedDictionary) -> GroupKey:
    training, origin = saved.manifest.get("config", {}), saved.manifest.get("made_from", {})
    return GroupKey(
        method=training.get("method", "unknown"),
        options=json.dumps(training.get("options", {}), sort_keys=True),
        architecture=saved.dictionary.architecture,
        d_sae=saved.dictionary.d_sae,
        target_l0=training.get("target_l0"),
        hook_point=str(site_of(saved.manifest, saved.folder) or "unknown"),
        # Without the tokenizer's settings, which older dictionaries do not record.
        model=str(origin.get("model_hash") or origin.get("model", "unknown")).partition(":")[0],
    )


def _labels(keys: Sequence[GroupKey]) -> list[str]:
    """A name for each group, as short as tells them apart."""

    def base(key: GroupKey) -> str:
        l0 = "" if key.target_l0 is None else f", L0 {key.target_l0:g}"
        return f"{key.method}, {key.d_sae:,} latents{l0}"

    def settings(key: GroupKey) -> str:
        options = flat(json.loads(key.options))
        odd = differing([flat(json.loads(k.options)) for k in keys if k.method == key.method])
        told = [f"{name} {options[name]}" for name in odd if name in options]
        return ", ".join([base(key), *told])

    tellers = (
        base,
        settings,
        lambda key: f"{settings(key)}, {key.architecture}",
        lambda key: f"{settings(key)}, {key.architecture}, {key.hook_point}",
        lambda key: f"{settings(key)}, {key.architecture}, {key.hook_point} of {key.model[:12]}",
    )
    labels: list[str] = []
    for tell in tellers:
        labels = [tell(key) for key in keys]
        if len(set(labels)) == len(labels):
            break
    return labels


def _runs(members: Sequence[SavedDictionary]) -> list[str]:
    seeds = [saved.manifest.get("seed") for saved in members]
    if None in seeds or len(set(seeds)) < len(seeds):
        return [saved.name for saved in members]
    return [f"seed {seed}" for seed in seeds]


def _not_comparable(dictionaries: Sequence[SavedDictionary], groups: Sequence[Group]) -> list[str]:
    """Groups of different models or hook points, or of one dictionary, which need --across."""
    problems = []
    examples = [dictionaries[group.members[0]].folder for group in groups]
    for what, values in (
        ("models", {group.key.model for group in groups}),
        ("hook points", {group.key.hook_point for group in groups}),
    ):
        if len(values) > 1:
            problems.append(
                f"the dictionaries are of different {what} ({', '.join(map(str, examples))}): "
                "compare those of one at a time, or all with one another with --across"
            )
    return problems + [
        f"{folder} is the only dictionary of its kind ({group.label}): consistency compares at "
        "least two that differ in their seed; train more (`--seeds 0 1 2`) and name them too, or "
        "compare methods with --across"
        for folder, group in zip(examples, groups, strict=True)
        if len(group.members) == 1
    ]


def _same_seed(dictionaries: Sequence[SavedDictionary], group: Group) -> list[str]:
    seeded = [dictionaries[index] for index in group.members]
    seeded = [saved for saved in seeded if saved.manifest.get("seed") is not None]
    return [
        f"{twin.folder} and {saved.folder} are both seed {saved.manifest['seed']} of {group.label}"
        f"{_difference(twin, saved)}: runs of a group should differ in their seed alone; leave "
        "one away"
        for twin, saved in twins(seeded, lambda saved: saved.manifest["seed"])
        if twin.content_hash != saved.content_hash
    ]


def _difference(first: SavedDictionary, second: SavedDictionary) -> str:
    sides = [flat(saved.manifest.get("config", {})) for saved in (first, second)]
    odd = [
        f"{name} {sides[0].get(name)} and {sides[1].get(name)}"
        for name in differing(sides)
        if name not in MEASURED
    ]
    return f", with {'; '.join(odd)}" if odd else ""
