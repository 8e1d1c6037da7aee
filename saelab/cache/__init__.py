"""The activation cache: a language model's activations, on disk or straight from it.

`write_caches` fills a folder per hook point, `open_cache` reads one, and the two streams hand a
trainer shuffled batches through one interface. Names are imported on first use, so that reading the
settings (`HarvestConfig`) for a command line's help does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import ActivationBatch, RowStatistics
    from .cache_stream import CacheStream
    from .config import HarvestConfig
    from .error_stream import ErrorStream
    from .model_stream import ModelStream
    from .reader import ActivationCache, open_cache
    from .rows import RowSelection, select_rows
    from .token_filter import TokenFilter
    from .writer import write_caches

__all__ = [
    "ActivationBatch",
    "ActivationCache",
    "CacheStream",
    "ErrorStream",
    "HarvestConfig",
    "ModelStream",
    "RowSelection",
    "RowStatistics",
    "TokenFilter",
    "open_cache",
    "select_rows",
    "write_caches",
]

_MODULE_OF = {
    "ActivationBatch": "batch",
    "RowStatistics": "batch",
    "CacheStream": "cache_stream",
    "ErrorStream": "error_stream",
    "HarvestConfig": "config",
    "TokenFilter": "token_filter",
    "ModelStream": "model_stream",
    "ActivationCache": "reader",
    "open_cache": "reader",
    "RowSelection": "rows",
    "select_rows": "rows",
    "write_caches": "writer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
