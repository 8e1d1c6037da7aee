"""Planted dictionaries: rows made of known features, to test what a training method recovers.

`PRESETS` are the planted dictionaries that scores are quoted on, `planted_features` and
`planted_rows` make them, `write_planted_cache` writes an ordinary activation cache of them, and
`truth_of` says what a dictionary trained on such a cache should have found. Names are imported on
first use, so that reading the settings for a command line's help does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import write_planted_cache
    from .config import (
        BernoulliSupportConfig,
        DensePartConfig,
        ExactSupportConfig,
        HierarchyConfig,
        PlantedConfig,
    )
    from .generator import PlantedRows, PlantedSource, planted_features, planted_rows
    from .presets import PRESETS
    from .streams import feature_frequencies
    from .truth import chance_cosine, coherence, truth_of

__all__ = [
    "PRESETS",
    "BernoulliSupportConfig",
    "DensePartConfig",
    "ExactSupportConfig",
    "HierarchyConfig",
    "PlantedConfig",
    "PlantedRows",
    "PlantedSource",
    "chance_cosine",
    "coherence",
    "feature_frequencies",
    "planted_features",
    "planted_rows",
    "truth_of",
    "write_planted_cache",
]

_MODULE_OF = {
    "PRESETS": "presets",
    "BernoulliSupportConfig": "config",
    "DensePartConfig": "config",
    "ExactSupportConfig": "config",
    "HierarchyConfig": "config",
    "PlantedConfig": "config",
    "PlantedRows": "generator",
    "PlantedSource": "generator",
    "chance_cosine": "truth",
    "coherence": "truth",
    "feature_frequencies": "streams",
    "planted_features": "generator",
    "planted_rows": "generator",
    "truth_of": "truth",
    "write_planted_cache": "cache",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
