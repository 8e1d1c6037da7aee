"""Integers mixed to pseudo-random ones, and generators seeded by what they are for.

Each is a fixed function of its arguments, the same on every machine and in every
release: orders of rows, splits and samples of saved results depend on it bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float

from saelab.formats.files import hash_of

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPLITMIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MURMUR = ((32, 0xFF51AFD7ED558CCD), (32, 0xC4CEB9FE1A85EC53))


def splitmix64(values: Words) -> Words:
    """SplitMix64 of each number: a fixed pseudo-random permutation of 64-bit integers."""
    with np.errstate(over="ignore"):
        return _mixed(values + _GOLDEN, _SPLITMIX, 31)


def murmur64(values: Words) -> Words:
    """MurmurHash3's finalizer with shifts of 32 bits; the order of shuffled rows is made of it."""
    with np.errstate(over="ignore"):
        return _mixed(values, _MURMUR, 32)


def _mixed(values: Words, rounds: tuple[tuple[int, int], ...], last_shift: int) -> Words:
    for shift, multiplier in rounds:
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(multiplier)
    return values ^ (values >> np.uint64(last_shift))


def random_words(count: int, stream: int) -> Words:
    """The first `count` random 64-bit numbers of a numbered stream; each depends on its index."""
    start = splitmix64(np.array([stream], np.uint64))
    return splitmix64(np.arange(count, dtype=np.uint64) + start)


def keyed_uniforms(keys: Words, seed: int) -> Float[np.ndarray, " keys"]:
    """A number in [0, 1) for each key under a seed: draws without a list of what was drawn.

    Example:
        >>> bool((keyed_uniforms(np.arange(1000, dtype=np.uint64), 0) < 1).all())
        True
    """
    with np.errstate(over="ignore"):
        offset = np.uint64(seed % (1 << 63)) * np.uint64(0xD1342543DE82EF95)
        mixed = splitmix64(keys * _GOLDEN + offset)
    return (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def seeded_generator(*purpose: Any) -> torch.Generator:
    """A separate generator for each purpose, such as ("steering", "prompts", seed).

    No draw then depends on how much another drew, nor on a training with the same seed.
    """
    return torch.Generator().manual_seed(int(hash_of(list(purpose))[:15], 16))
