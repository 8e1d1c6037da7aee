"""A pseudo-random order of any number of rows that needs no memory.

A Feistel network over the smallest power of two that holds `n` is a bijection whatever its round
function; values that fall outside `range(n)` are encrypted again until they fall inside (cycle
walking), which keeps it a bijection on `range(n)`. Position `i` of the order is computed from `i`
alone, so a shuffled reader's state is its position, and its cost does not grow with the pool.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from saelab.stats.seeds import murmur64

_ROUNDS = 8


class Permutation:
    """The order of `range(n)` that a key stands for; equal keys give equal orders.

    Args:
        n: how many items there are; at least 1.
        key: any integers, such as (seed, epoch).
    """

    def __init__(self, n: int, *key: int):
        if n < 1:
            raise ValueError(f"a permutation of {n} items was asked for; at least 1 is needed")
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self._widths = (bits // 2, bits - bits // 2)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, positions: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Items at these positions of the order, each position in `range(n)`."""
        items = self._encrypt(positions.astype(np.uint64))
        outside = np.flatnonzero(items >= self.n)
        while outside.size:
            walked = self._encrypt(items[outside])
            items[outside] = walked
            outside = outside[walked >= self.n]
        return items.astype(np.int64)

    def _encrypt(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """One pass of the network. The halves swap in every round, and so do their widths."""
        left_width, right_width = self._widths
        left = values >> np.uint64(right_width)
        right = values & np.uint64((1 << right_width) - 1)
        for key in self._keys:
            mixed = left ^ (murmur64(right + key) & np.uint64((1 << left_width) - 1))
            left, right = right, mixed
            left_width, right_width = right_width, left_width
        return (left << np.uint64(right_width)) | right
