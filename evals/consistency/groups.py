"""Which dictionaries are runs of the same thing, and are therefore compared with one another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saelab.dictionary import SavedDictionary
from saelab.dictionary.storage import site_of
from saelab.errors import ConfigError

MEASURED = ("measured_l0", "fvu_on_training_rows", "dead_fraction")
"""What the training record says of the outcome, not of the settings."""


@dataclass(frozen=True, kw_only=True)
class GroupKey:
    """What dictionaries of a group have in common."""

    method: str
    """Training method, "unknown" where none is recorded."""
    options: str
    """The method's options as JSON."""
    architecture: str
    """Architecture of the dictionary."""
    d_sae: int
    """Latents."""
    target_l0: int | float | None
    """L0 the training aimed at; None where it had no target."""
    hook_point: str
    """Where in the model."""
    model: str
    """Content hash of the model, or its name where no hash is recorded."""


@dataclass(frozen=True)
class Group:
    """Dictionaries that differ in their seed."""

    key: GroupKey
    label: str
    """For people; no two groups of a call share it."""
    members: list[int]
    """Places in the list of dictionaries given."""
    runs: list[str]
    """What tells the members apart: "seed 0", or the folder's name where no seed is recorded."""


def key_of(saved: SavedDictionary) -> GroupKey:
    """The group a dictionary belongs to, from what its manifest recorded."""
    training, origin = saved.manifest.get("config", {}), saved.manifest.get("made_from", {})
    return GroupKey(
        method=training.get("method", "unknown"),
        options=json.dumps(training.get("options", {}), sort_keys=True),
        architecture=saved.dictionary.architecture,
        d_sae=saved.dictionary.d_sae,
        target_l0=training.get("target_l0"),
        hook_point=str(site_of(saved.manifest, saved.folder) or "unknown"),
        model=origin.get("model_hash") or origin.get("model", "unknown"),
    )


def form_groups(dictionaries: Sequence[SavedDictionary], *, across: bool) -> list[Group]:
    """Divide dictionaries into groups, in the order of their first members.

    Args:
        dictionaries: at least one.
        across: whether groups are compared with one another.

    Raises:
        ConfigError: with every reason why there is nothing to compare, or nothing comparable.
    """
    by_key: dict[GroupKey, list[int]] = {}
    for place, saved in enumerate(dictionaries):
        by_key.setdefault(key_of(saved), []).append(place)
    groups = [
        Group(key, label, by_key[key], _runs([dictionaries[place] for place in by_key[key]]))
        for key, label in zip(by_key, labels_of(list(by_key)), strict=True)
    ]
    problems = _doubled(dictionaries)
    if not across:
        problems += _mixed(dictionaries, groups)
        problems += _alone(dictionaries, groups)
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


def labels_of(keys: Sequence[GroupKey]) -> list[str]:
    """A name for each group, as short as tells them apart."""

    def base(key: GroupKey) -> str:
        l0 = "" if key.target_l0 is None else f", L0 {key.target_l0:g}"
        return f"{key.method}, {key.d_sae:,} latents{l0}"

    def settings(key: GroupKey) -> str:
        own = _flat(json.loads(key.options))
        others = [_flat(json.loads(k.options)) for k in keys if k.method == key.method]
        odd = [name for name in own if any(other.get(name) != own[name] for other in others)]
        return ", ".join([base(key), *(f"{name} {own[name]}" for name in odd)])

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


def _doubled(dictionaries: Sequence[SavedDictionary]) -> list[str]:
    first: dict[str, SavedDictionary] = {}
    problems = []
    for saved in dictionaries:
        twin = first.setdefault(saved.content_hash, saved)
        if twin is not saved:
            problems.append(f"{saved.folder} is the same dictionary as {twin.folder}: name it once")
    return problems


def _mixed(dictionaries: Sequence[SavedDictionary], groups: Sequence[Group]) -> list[str]:
    problems = []
    for what, values in (
        ("models", {group.key.model for group in groups}),
        ("hook points", {group.key.hook_point for group in groups}),
    ):
        if len(values) > 1:
            example = [str(dictionaries[group.members[0]].folder) for group in groups]
            problems.append(
                f"the dictionaries are of different {what} ({', '.join(example)}): compare those "
                "of one at a time, or all with one another with --across"
            )
    return problems


def _alone(dictionaries: Sequence[SavedDictionary], groups: Sequence[Group]) -> list[str]:
    return [
        f"{dictionaries[group.members[0]].folder} is the only dictionary of its kind "
        f"({group.label}): consistency compares at least two that differ in their seed; train more "
        "(`--seeds 0 1 2`) and name them too, or compare methods with --across"
        for group in groups
        if len(group.members) == 1
    ]


def _same_seed(dictionaries: Sequence[SavedDictionary], group: Group) -> list[str]:
    first: dict[int, SavedDictionary] = {}
    problems = []
    for place in group.members:
        saved = dictionaries[place]
        seed = saved.manifest.get("seed")
        twin = saved if seed is None else first.setdefault(seed, saved)
        if twin is not saved and twin.content_hash != saved.content_hash:
            problems.append(
                f"{twin.folder} and {saved.folder} are both seed {seed} of {group.label}"
                f"{_difference(twin, saved)}: runs of a group should differ in their seed alone; "
                "leave one away"
            )
    return problems


def _difference(one: SavedDictionary, other: SavedDictionary) -> str:
    sides = [_flat(saved.manifest.get("config", {})) for saved in (one, other)]
    odd = [
        f"{name} {sides[0].get(name)} and {sides[1].get(name)}"
        for name in sides[0]
        if name not in MEASURED and sides[0].get(name) != sides[1].get(name)
    ]
    return f", with {'; '.join(odd)}" if odd else ""


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
