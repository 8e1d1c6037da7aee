"""What dictionaries share and what tells them apart: settings, rows, doubles."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from saelab.config import to_plain
from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec

Item = TypeVar("Item")


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose values are not the same in all, in the order in which they appear."""
    names = dict.fromkeys(name for each in settings for name in each)
    first = settings[0]
    return [name for name in names if any(each.get(name) != first.get(name) for each in settings)]


def twins(items: Iterable[Item], key: Callable[[Item], Hashable]) -> Iterator[tuple[Item, Item]]:
    """Every item whose key an earlier one has, after the first such item."""
    first: dict[Hashable, Item] = {}
    for item in items:
        twin = first.setdefault(key(item), item)
        if twin is not item:
            yield twin, item


def is_planted(saved: SavedDictionary) -> bool:
    """Whether a dictionary was trained on planted features instead of a language model."""
    return str(saved.made_from.get("model", "")).startswith("planted:")


def row_settings(spec: DataSpec) -> dict[str, Any]:
    """The settings that decide which rows a dictionary is evaluated on, as results have them."""
    return {
        "context_length": spec.context_length,
        "text": to_plain(spec.text),
        "row_rule": to_plain(spec.token_filter),
        "norm_ceiling": spec.norm_ceiling,
        "model_dtype": spec.model_dtype,
    }
