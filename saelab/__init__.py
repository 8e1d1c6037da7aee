"""Train sparse autoencoders on language-model activations, judge them, read their features.

What a notebook needs, loaded on first use: `import saelab` itself loads neither torch nor
transformer_lens. The rest is in the folders.

    load_language_model   a model with hook points         open_cache      activations on disk
    train                 dictionaries from activations    load_dictionary a saved dictionary
    evaluate              a suite on saved dictionaries    open_features   a feature store
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache.config import HarvestConfig
    from .cache.reader import open_cache
    from .cache.writer import write_caches
    from .dictionary import Dictionary, load_dictionary, save_dictionary
    from .errors import SaelabError
    from .features.reader import open_features
    from .formats.evaluation_result import read_evaluation_result
    from .model.language_model import load_language_model
    from .sparse import SparseCodes

_MODULE_OF = {
    "Dictionary": "dictionary",
    "HarvestConfig": "cache.config",
    "SaelabError": "errors",
    "SparseCodes": "sparse",
    "TrainConfig": "training.config",
    "evaluate": "evals.command",
    "load_dictionary": "dictionary",
    "load_language_model": "model.language_model",
    "open_cache": "cache.reader",
    "open_features": "features.reader",
    "read_evaluation_result": "formats.evaluation_result",
    "save_dictionary": "dictionary",
    "train": "training.run",
    "write_caches": "cache.writer",
}

__all__ = [
    "Dictionary",
    "HarvestConfig",
    "SaelabError",
    "SparseCodes",
    "load_dictionary",
    "load_language_model",
    "open_cache",
    "open_features",
    "read_evaluation_result",
    "save_dictionary",
    "write_caches",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
