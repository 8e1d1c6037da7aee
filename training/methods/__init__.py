"""Every training method by its name on the command line.

A new paper is one new file here, its line in `METHODS`, and its field in `MethodOptions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..interface import DictionarySettings, Method
from .topk import TopK, TopKOptions

METHODS: dict[str, Callable[[DictionarySettings, Any], Method]] = {
    "topk": TopK,
}


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """The settings of every method; each method reads only those under its own name."""

    topk: TopKOptions = field(default_factory=TopKOptions)
    """Settings of `topk`."""
