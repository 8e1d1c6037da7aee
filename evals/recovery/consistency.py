"""Whether runs that differ in nothing but their seed find the same latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.formats.files import hash_of
from saelab.stats.cosines import directions_of, nearest

CONSISTENT = 0.9
ALIKE = ("method", "options", "optimizer", "n_tokens", "batch_rows", "target_l0")
"""What of the training settings runs must share to be compared; the seed is not among it."""


def training_of(saved: SavedDictionary) -> dict[str, Any]:
    """The training settings that make runs alike, as plain values."""
    recorded = saved.manifest.get("config", {})
    return {
        **{name: recorded[name] for name in ALIKE if name in recorded},
        "architecture": saved.dictionary.architecture,
        "d_sae": saved.dictionary.d_sae,
    }


def alike(one: SavedDictionary, other: SavedDictionary) -> bool:
    """Whether two dictionaries differ in nothing but the seed of the training."""
    return hash_of([training_of(one), one.made_from]) == hash_of(
        [training_of(other), other.made_from]
    )


def mean_max_cosine(
    decoder: Float[Tensor, "d_sae d_in"], others: Sequence[Float[Tensor, "d_other d_in"]]
) -> Float[Tensor, " d_sae"]:
    """MCS: per latent, its largest cosine with the latents of another, mean over the others."""
    own = directions_of(decoder).rows
    largest = [nearest(own, directions_of(other).rows)[0] for other in others]
    return torch.stack(largest).mean(dim=0)


def consistent_share(
    saved: SavedDictionary, alive: Bool[Tensor, " d_sae"], others: Sequence[SavedDictionary]
) -> float | None:
    """Share of the alive latents with MCS above 0.9; None where there is nothing to compare."""
    if not others or not bool(alive.any()):
        return None
    decoders = [other.dictionary.W_dec for other in others]
    found = mean_max_cosine(saved.dictionary.W_dec, decoders)
    return float((found[alive] > CONSISTENT).double().mean())
