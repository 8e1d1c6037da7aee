"""From an artifact back to the planted dictionary that it was made from."""

from __future__ import annotations

from typing import Any

from saelab.config import from_plain, to_plain
from saelab.dictionary import SavedDictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import hash_of

from .config import PlantedConfig

ORIGIN_KEY = "planted"
"""Where `made_from` keeps the planted config."""
GENERATOR_VERSION = 1
"""Of the arithmetic from a config to features and rows: raised when either changes."""


def planted_hash(config: PlantedConfig) -> str:
    """Hash of all that decides features and rows."""
    return _hash(to_plain(config))


def _hash(recorded: Any) -> str:
    """The hash from a record: one that lacks fields of later versions keeps the hash it had."""
    return hash_of({"generator_version": GENERATOR_VERSION, "config": recorded})


def truth_of(saved: SavedDictionary) -> PlantedConfig:
    """The planted dictionary that a saved dictionary was trained on, from its manifest alone.

    Raises:
        ArtifactError: it was trained on something else, its record was edited, or this saelab makes
            other rows from the same settings than the one that trained it.
    """
    origin = saved.made_from
    if ORIGIN_KEY not in origin:
        raise ArtifactError(
            f"{saved.folder} was trained on {origin.get('model')!r}, not on planted features, so "
            "there are no true features to compare it with: train on a cache that "
            "`saelab synthetic` wrote, or judge it with `saelab eval core`"
        )
    try:
        config = from_plain(PlantedConfig, origin[ORIGIN_KEY], "planted features")
    except ConfigError as error:
        raise ArtifactError(
            f"{saved.folder} records planted features that this saelab cannot read ({error}): "
            "upgrade saelab, or train it again"
        ) from None
    if origin.get("model_hash") != _hash(origin[ORIGIN_KEY]):
        raise ArtifactError(
            f"{saved.folder} records planted features under another hash than they have here: the "
            "record was edited or is of another version of the generator; train it again on a new "
            "`saelab synthetic` cache"
        )
    if config.d_in != saved.dictionary.d_in:
        raise ArtifactError(
            f"{saved.folder} takes rows of width {saved.dictionary.d_in}, but its planted features "
            f"have width {config.d_in}: the manifest was edited; train it again"
        )
    return config
