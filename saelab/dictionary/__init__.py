"""Saved SAEs: four architectures, one folder that SAELens reads, a self-test on every load."""

from .architectures import ARCHITECTURES, Dictionary
from .storage import SavedDictionary, load_dictionary, save_dictionary

__all__ = [
    "ARCHITECTURES",
    "Dictionary",
    "SavedDictionary",
    "load_dictionary",
    "save_dictionary",
]
