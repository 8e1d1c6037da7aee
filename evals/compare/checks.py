"""What may stand in one comparison: one model, one hook point, one text, each dictionary once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from saelab.errors import ConfigError

from .candidates import Candidate, flat


def check_comparable(candidates: Sequence[Candidate]) -> None:
    """Refuse what cannot be compared, with the first two folders that clash for each reason.

    Raises:
        ConfigError: with every reason.
    """
    problems = [*_doubled(candidates), *_different(candidates)]
    if not problems:
        problems = _same_seed(candidates)
    if problems:
        raise ConfigError(problems)


def _doubled(candidates: Sequence[Candidate]) -> list[str]:
    first: dict[str, Candidate] = {}
    problems = []
    for one in candidates:
        twin = first.setdefault(one.content_hash, one)
        if twin is not one:
            problems.append(
                f"{one.folder} is the same dictionary as {twin.folder}: name each once (a run "
                "stands for all its dictionaries)"
                if one.folder.resolve() != twin.folder.resolve()
                else f"{one.folder} is named twice: name it once (a run stands for all its "
                "dictionaries)"
            )
    return problems[:3]


def _different(candidates: Sequence[Candidate]) -> list[str]:
    """Clashes with the first dictionary."""
    what: dict[str, tuple[Callable[[Candidate], Any], Callable[[Candidate], str]]] = {
        "models": (
            lambda one: one.origin.get("model_hash") or one.origin["model"],
            lambda one: f"{one.origin['model']} ({str(one.origin.get('model_hash'))[:12]})",
        ),
        "hook points": (
            lambda one: one.spec.hook_point,
            lambda one: str(one.spec.hook_point),
        ),
        "texts": (lambda one: (one.spec.text, one.origin.get("text_hash")), _text),
        "context lengths": (
            lambda one: one.spec.context_length,
            lambda one: f"{one.spec.context_length} tokens",
        ),
        "token filters": (
            lambda one: one.spec.token_filter,
            lambda one: json.dumps(one.origin["row_rule"]),
        ),
    }
    first = candidates[0]
    problems = []
    for name, (key, shown) in what.items():
        odd = next((one for one in candidates if key(one) != key(first)), None)
        if odd is not None:
            problems.append(
                f"dictionaries of different {name} cannot be compared: {first.folder} has "
                f"{shown(first)}, {odd.folder} has {shown(odd)}; compare those of one at a time"
            )
    return problems


def _text(one: Candidate) -> str:
    text = one.origin["text"]
    described = ", ".join(f"{name} {value}" for name, value in text.items())
    content = one.origin.get("text_hash")
    return f"{described} (content {content[:12]})" if isinstance(content, str) else described


def _same_seed(candidates: Sequence[Candidate]) -> list[str]:
    first: dict[Any, Candidate] = {}
    problems = []
    for one in candidates:
        twin = first.setdefault((*one.group, one.seed), one)
        if twin is not one:
            problems.append(
                f"{twin.folder} and {one.folder} are both seed {one.seed} of {one.label}, "
                f"{one.d_sae:,} latents, k {one.k}, with the same settings"
                f"{_difference(twin, one)}: leave one away"
            )
    return problems[:3]


def _difference(one: Candidate, other: Candidate) -> str:
    sides = flat(one.origin), flat(other.origin)
    odd = [name for name in sides[0] if sides[0].get(name) != sides[1].get(name)]
    return f" (they differ in {', '.join(odd)})" if odd else ""


def notes_on(candidates: Sequence[Candidate]) -> list[str]:
    """What a reader should know of the dictionaries before comparing them, in sentences."""
    notes = []
    for what, values in {
        "numbers of training rows": {one.n_tokens for one in candidates},
        "batch sizes (rows)": {one.settings.get("batch_rows") for one in candidates},
        "norm ceilings of the rows": {one.spec.norm_ceiling for one in candidates},
        "model dtypes": {one.spec.model_dtype for one in candidates},
    }.items():
        if len(values) > 1:
            shown = ", ".join(sorted(f"{v:,}" if isinstance(v, int) else str(v) for v in values))
            notes.append(f"The dictionaries have different {what}: {shown}.")
    groups: dict[Any, list[int]] = {}
    for one in candidates:
        groups.setdefault(one.group, []).append(one.seed)
    alone = [group for group, seeds in groups.items() if len(seeds) < 2]
    if alone:
        named = ", ".join(f"{label} d_sae {d_sae:,} k {k}" for label, d_sae, k in alone[:4])
        more = f" and {len(alone) - 4} more" if len(alone) > 4 else ""
        notes.append(f"Only one seed of {named}{more}: no spread and no consistency, shown as “—”.")
    if len({len(seeds) for seeds in groups.values()}) > 1:
        notes.append("Not every row has the same number of seeds; each row says how many.")
    return notes
