"""Saved SAEs: four architectures, one folder that SAELens reads, a self-test on every load."""

from .architectures import ARCHITECTURES, Dictionary
from .modes import InferenceModes, has_inference_modes
from .site import Site
from .storage import SavedDictionary, load_dictionary, save_dictionary

__all__ = [
    "ARCHITECTURES",
    "Dictionary",
    "InferenceModes",
    "SavedDictionary",
    "Site",
    "has_inference_modes",
    "load_dictionary",
    "save_dictionary",
]
