"""Which results need no measuring: those of the same settings and the same dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.config import to_plain
from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import EvaluationResult, read_evaluation_result

if TYPE_CHECKING:
    from .suite import Suite

NOT_DECISIVE = (
    "out",
    "overwrite",
    "device",
    "card",
    "truth",  # the path; its content counts
    "batch_contexts",
    "batch_variants",
    "batch_tokens",
    "store",
    "activations",
    "controls",  # which stand beside the numbers
)
"""Settings that decide no number, so they are not stored with a result."""
REPLACE = "add --overwrite to replace it"
MOST_NAMED = 4
"""Settings that are named where an existing result has others."""


def asked_of(config: Any, compared: Iterable[str] = ()) -> dict[str, Any]:
    """The settings that decide numbers, as they were given, and what is compared with one another.

    Args:
        compared: content hashes of the dictionaries of a group.
    """
    plain = to_plain(config).items()
    asked = {name: value for name, value in plain if name not in NOT_DECISIVE}
    # How it is measured, where that has changed since results of the same settings were made.
    asked |= {"protocol": protocol} if (protocol := getattr(config, "PROTOCOL", None)) else {}
    return asked | ({"dictionaries": sorted(compared)} if compared else {})


def existing_results(
    suite: Suite[Any],
    hashes: Mapping[Path, str],
    asked: Mapping[str, Any],
    *,
    refuse_lost: bool = False,
) -> tuple[dict[Path, EvaluationResult], list[str]]:
    """The results that need no measuring, and what is wrong with others that are in the way.

    Args:
        hashes: content hash of the dictionary of each result folder.
        asked: what is asked now, as `asked_of` says it.
        refuse_lost: whether a result without its rows is in the way, too; else it is as none.

    Returns:
        Usable results by their folder; a sentence for each of the others.
    """
    usable, problems = {}, []
    for out, content_hash in hashes.items():
        path = out / f"{suite.stem}.json"
        if not path.exists():
            continue
        try:
            result = read_evaluation_result(path)
        except ArtifactError as error:
            problems.append(f"{error}; {REPLACE}")
            continue
        lost = [name for name in result.item_files.values() if not (out / name).is_file()]
        if result.dictionary_hash != content_hash:
            problems.append(f"{path} exists already, of another dictionary: {REPLACE}")
        elif different := _differences(suite, result.asked, asked):
            problems.append(f"{path} exists already, of other settings: {REPLACE}; {different}")
        elif not lost:
            usable[out] = result
        elif refuse_lost:
            problems.append(f"{path} names {', '.join(lost)} beside it: missing; {REPLACE}")
    return usable, problems


def _differences(suite: Suite[Any], given: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """In which settings a result is another than the one asked for, in words; empty: in none."""
    if not given:
        return "it does not say which"

    def same(name: str) -> bool:
        serves = suite.serves.get(name, lambda old, new: old == new)
        return name in given and name in asked and serves(given[name], asked[name])

    names = dict.fromkeys((*asked, *given))
    odd = [name for name in names if name not in NOT_DECISIVE and not same(name)]
    shown = [f"{n} {_shortened(given.get(n))}, not {_shortened(asked.get(n))}" for n in odd]
    more = [f"{len(odd) - MOST_NAMED} more"] if len(odd) > MOST_NAMED else []
    return f"it has {', '.join([*shown[:MOST_NAMED], *more])}" if odd else ""


def _shortened(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} values"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
