"""Train sparse autoencoders on language-model activations, judge them, read their features.

The names below are imported on first use: `import saelab` itself loads neither torch nor
transformer_lens.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import HarvestConfig, open_cache, write_caches
    from .dictionary import Dictionary, load_dictionary, save_dictionary
    from .errors import SaelabError
    from .formats.evaluation_result import read_evaluation_result
    from .model.language_model import load_language_model
    from .sparse import SparseCodes

__all__ = [
    "Dictionary",
    "HarvestConfig",
    "SaelabError",
    "SparseCodes",
    "load_dictionary",
    "load_language_model",
    "open_cache",
    "read_evaluation_result",
    "save_dictionary",
    "write_caches",
]

_MODULE_OF = {
    "Dictionary": "dictionary",
    "HarvestConfig": "cache",
    "SaelabError": "errors",
    "SparseCodes": "sparse",
    "load_dictionary": "dictionary",
    "load_language_model": "model.language_model",
    "open_cache": "cache",
    "read_evaluation_result": "formats.evaluation_result",
    "save_dictionary": "dictionary",
    "write_caches": "cache",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
