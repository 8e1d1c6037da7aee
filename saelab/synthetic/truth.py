"""From an artifact back to its planted dictionary, and how near planted features lie together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import from_plain, to_plain
from saelab.dictionary import SavedDictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import hash_of
from saelab.stats.cosines import cosine_blocks, nearest

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
            "there are no true features to compare it with: give them, where you know them, with "
            "`saelab eval recovery --truth FILE`; train on a cache that `saelab synthetic` wrote; "
            "or judge it with `saelab eval core`"
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


CHANCE_SEED = 0


def coherence(features: Float[Tensor, "n_features d_in"]) -> float:
    """max |cos(v_i, v_j)| over all pairs of different features, which have norm one."""
    largest = 0.0
    for part, block in cosine_blocks(features, features):
        block[:, part].fill_diagonal_(0)
        largest = max(largest, float(block.abs().max()))
    return largest


def chance_cosine(features: Float[Tensor, "n_features d_in"], n_latents: int) -> float:
    """Mean over features of the largest cosine with `n_latents` random directions.

    What a dictionary of this width reaches that has learnt nothing.
    """
    generator = np.random.default_rng(CHANCE_SEED)
    drawn = generator.standard_normal((n_latents, features.shape[1]), dtype=np.float32)
    directions = torch.from_numpy(drawn).to(features.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return float(nearest(features, directions)[0].double().mean())
