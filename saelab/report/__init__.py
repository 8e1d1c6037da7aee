"""Self-contained HTML pages, and plots of the charts that results store. Import its modules."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"Report": "page", "unit_text": "page", "figures_of": "registry", "FIGURES": "registry"}
"""Names that suites which store no charts yet import from here."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
