"""Which contexts are shown for a latent: top examples, strata of the sequence maxima, random ones.

A context is represented by its largest activation (the sequence maximum; the first position where
several are equal). There are also contexts in which a latent is silent: those that a decoder
neighbour is strongest in and this latent does not touch, and random ones. Drawing is by a fixed
random number of each context or position, the same for every latent: a uniform sample for each
latent, whatever its index and whatever was built with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from einops import rearrange, repeat
from jaxtyping import Float, Integer

from saelab.stats.seeds import random_words, splitmix64

from .config import StoreOptions
from .schema import LAYOUTS, check_context_length
from .shards import Pairs, indices_of_runs


class TextKeys:
    """What drawing and comparing examples needs to know of a text.

    Args:
        tokens: the text.
        options: with the seed, and the width of the windows compared.
        lengths: of each context before its padding; None: nothing is padded.

    Raises:
        ConfigError: contexts too long for the file's positions.
    """

    def __init__(
        self,
        tokens: Integer[np.ndarray, "contexts context_length"],
        options: StoreOptions,
        lengths: Integer[np.ndarray, " contexts"] | None = None,
    ):
        contexts, length = tokens.shape
        check_context_length(length)
        self.context_length = length
        self.lengths = (np.full(contexts, length) if lengths is None else lengths).astype(np.uint64)
        """Tokens of each context before its padding."""
        self.position_draw = random_words(contexts * length, 2 * options.seed)
        """A random number of every position."""
        self.context_draw = random_words(contexts, 2 * options.seed + 1)
        """A random number of every context."""
        self.window_hash = _window_hashes(tokens, options.same_window).reshape(-1)
        """Hash of the tokens around every position."""


def _window_hashes(
    tokens: Integer[np.ndarray, "contexts context_length"], radius: int
) -> Integer[np.ndarray, "contexts context_length"]:
    """Hash of each position's window; what is outside the context counts as a token apart."""
    contexts, length = tokens.shape
    padded = np.zeros((contexts, length + 2 * radius), np.uint64)
    padded[:, radius : radius + length] = tokens.astype(np.uint64) + np.uint64(1)
    hashes = np.zeros((contexts, length), np.uint64)
    for offset in range(2 * radius + 1):
        hashes = splitmix64(hashes ^ padded[:, offset : offset + length])
    return hashes


class RangeExamples:
    """Chooses the examples of each latent of a range.

    Args:
        pairs: every pair of the range.
        keys: of the text.
        options: how many examples.
    """

    def __init__(self, pairs: Pairs, keys: TextKeys, options: StoreOptions):
        self._pairs = pairs
        self._keys = keys
        self._options = options
        length = keys.context_length
        latent = pairs.latents()
        self._context = (pairs.row // np.uint32(length)).astype(np.int64)
        self._position = (pairs.row % np.uint32(length)).astype(np.uint16)
        # A stretch is what one latent does in one context: neighbouring pairs.
        is_first = np.ones(len(latent), bool)
        is_first[1:] = (latent[1:] != latent[:-1]) | (self._context[1:] != self._context[:-1])
        self._stretch_start = np.append(np.flatnonzero(is_first), len(latent))
        stretch = np.cumsum(is_first) - 1
        self._order = _falling_order(pairs, latent)
        peak_index = np.full(len(self._stretch_start) - 1, -1, np.int64)
        # The last write stays, so from the back each stretch ends with its highest pair.
        peak_index[stretch[self._order][::-1]] = np.arange(len(latent))[::-1]
        is_peak = np.zeros(len(latent), bool)
        is_peak[peak_index] = True
        self._peaks = self._order[is_peak]
        """Pair of each stretch's maximum, by latent, falling."""
        self._stretch = stretch
        peaks_before = np.concatenate([[0], np.cumsum(is_peak)])
        self.n_sequences: Integer[np.ndarray, " latents"] = np.diff(peaks_before[pairs.pointer])
        """Contexts in which each latent is active."""
        self._peak_pointer = peaks_before[pairs.pointer]

    def rising(self, latent: int) -> Float[np.ndarray, " active"]:
        """The activations of one latent in rising order."""
        start, end = self._pairs.pointer[latent], self._pairs.pointer[latent + 1]
        return self._pairs.activation[self._order[start:end][::-1]]

    def top(self, latent: int) -> Integer[np.ndarray, " examples"]:
        """Pairs of the highest sequence maxima whose windows are not alike."""
        peaks = self._latent_peaks(latent)
        wanted = self._options.n_top
        taken = min(4 * wanted, len(peaks))
        while True:
            hashes = self._keys.window_hash[self._pairs.row[peaks[:taken]]]
            _, first = np.unique(hashes, return_index=True)
            if len(first) >= wanted or taken == len(peaks):
                return peaks[np.sort(first)[:wanted]]
            taken = min(4 * taken, len(peaks))

    def packed(self, latent: int) -> dict[str, np.ndarray]:
        """The arrays of table `examples` of a latent that is active somewhere."""
        rising = self.rising(latent)
        peaks = self._latent_peaks(latent)
        low, high, sizes = strata_of(self._pairs.activation[peaks][::-1], self._options.n_strata)
        n_activations, mass = _shares(rising, low)
        lists = [self.top(latent), *self._drawn(peaks, sizes), self._positives(latent)]
        chosen = np.concatenate(lists)
        starts = self._stretch_start[self._stretch[chosen]]
        lengths = self._stretch_start[self._stretch[chosen] + 1] - starts
        shown = indices_of_runs(starts, lengths)
        return {
            "stratum_low": low,
            "stratum_high": high,
            "stratum_sequences": sizes,
            "stratum_activations": n_activations,
            "stratum_mass": mass,
            "list_sizes": np.array([len(part) for part in lists]),
            "sequence": self._context[chosen],
            "anchor": self._position[chosen],
            "n_active": lengths,
            "position": self._position[shown],
            "activation": self._pairs.activation[shown],
        }

    def _latent_peaks(self, latent: int) -> Integer[np.ndarray, " contexts"]:
        return self._peaks[self._peak_pointer[latent] : self._peak_pointer[latent + 1]]

    def _drawn(
        self, peaks: Integer[np.ndarray, " contexts"], sizes: Integer[np.ndarray, " strata"]
    ) -> list[Integer[np.ndarray, " examples"]]:
        """Pairs drawn from each stratum, falling within it; strata come from the highest down."""
        draws = self._keys.context_draw[self._context[peaks]]
        bounds = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        return [
            peaks[start:end][smallest(draws[start:end], self._options.n_per_stratum)]
            for start, end in pairwise(bounds)
        ]

    def _positives(self, latent: int) -> Integer[np.ndarray, " examples"]:
        """Pairs drawn uniformly from all of a latent, in the order of the text."""
        start, end = int(self._pairs.pointer[latent]), int(self._pairs.pointer[latent + 1])
        draws = self._keys.position_draw[self._pairs.row[start:end]]
        return start + smallest(draws, self._options.n_random)


def no_examples() -> dict[str, np.ndarray]:
    """The arrays of table `examples` of a latent that is never active: no strata, empty lists."""
    return {**dict.fromkeys(LAYOUTS["examples"], np.zeros(0)), "list_sizes": np.zeros(2)}


def strata_of(
    rising: Float[np.ndarray, " contexts"], n_strata: int
) -> tuple[
    Float[np.ndarray, " strata"], Float[np.ndarray, " strata"], Integer[np.ndarray, " strata"]
]:
    """Strata of equal size by exact quantiles, from the highest down.

    Stratum j of n begins at the value of rank ⌊j·M/n⌋ of M maxima and ends before the next one's;
    equal maxima are never parted, so strata can differ in size, and fewer come out where ties or
    small M leave one without members. The lowest begins at 0; the highest holds its upper edge.

    Args:
        rising: sequence maxima in rising order, at least one.
        n_strata: strata wanted.

    Returns:
        Lower edges, upper edges, and members of each stratum.
    """
    ranks = np.arange(1, n_strata) * len(rising) // n_strata
    inner = np.unique(rising[ranks].astype(np.float64))
    inner = inner[inner > float(rising[0])]
    edges = np.concatenate([[0.0], inner, [float(rising[-1])]])
    below = np.searchsorted(rising, edges[1:-1], side="left")
    sizes = np.diff(np.concatenate([[0], below, [len(rising)]]))
    return edges[:-1][::-1], edges[1:][::-1], sizes[::-1]


def _shares(
    rising: Float[np.ndarray, " active"], low: Float[np.ndarray, " strata"]
) -> tuple[Integer[np.ndarray, " strata"], Float[np.ndarray, " strata"]]:
    """Activations in each stratum and their sum, from the highest stratum down."""
    begins = np.searchsorted(rising, low[::-1], side="left")
    counts = np.diff(np.append(begins, len(rising)))
    return counts[::-1], np.add.reduceat(rising.astype(np.float64), begins)[::-1]


def smallest(draws: Integer[np.ndarray, " entries"], count: int) -> Integer[np.ndarray, " chosen"]:
    """Indices of the smallest draws, rising."""
    if len(draws) <= count:
        return np.arange(len(draws))
    return np.sort(np.argpartition(draws, count)[:count])


def _falling_order(
    pairs: Pairs, latent: Integer[np.ndarray, " pairs"]
) -> Integer[np.ndarray, " pairs"]:
    """Indices of the pairs by latent, then by falling activation, then by row.

    Bit patterns of positive floats rise with their value, so latent, complemented pattern and index
    make one key of 63 bits, and the sort moves nothing else.
    """
    index_bits = max(1, len(latent) - 1).bit_length()
    latent_bits = max(1, len(pairs.pointer) - 2).bit_length()
    if 31 + index_bits + latent_bits > 63:
        return np.lexsort((pairs.row, -pairs.activation, latent))
    pattern = pairs.activation.view(np.uint32).astype(np.int64)
    key = (latent << 31 | (0x7FFFFFFF - pattern)) << index_bits
    return np.sort(key | np.arange(len(latent))) & ((1 << index_bits) - 1)


@dataclass(frozen=True, eq=False)
class TopRows:
    """The top examples of every latent, padded."""

    row: Integer[np.ndarray, "d_sae n_top"]
    """Row of each; −1 where there are fewer."""
    activation: Float[np.ndarray, "d_sae n_top"]
    """Activation there."""


class SilentContexts:
    """Chooses the silent contexts of each latent.

    Args:
        tops: top examples of every latent.
        keys: of the text.
        n_near: near misses, at most.
        n_random: random contexts, at most.
    """

    def __init__(self, tops: TopRows, keys: TextKeys, n_near: int, n_random: int):
        self._tops = tops
        self._keys = keys
        self._n_near = n_near
        self._n_random = n_random
        self._active = np.zeros(len(keys.context_draw), bool)
        self._drawn_order = np.argsort(keys.context_draw, kind="stable")

    def arrays(
        self, row: Integer[np.ndarray, " active"], neighbours: Integer[np.ndarray, " neighbours"]
    ) -> dict[str, np.ndarray]:
        """The arrays of table `silent` of a latent.

        Args:
            row: where it is active.
            neighbours: its decoder neighbours, nearest first.
        """
        contexts = (row // np.uint32(self._keys.context_length)).astype(np.int64)
        # One scratch array for all latents: clearing what was set costs less than a fresh one.
        self._active[contexts] = True
        arrays = self._near(neighbours) | self._random()
        self._active[contexts] = False
        return arrays

    def _near(self, neighbours: Integer[np.ndarray, " neighbours"]) -> dict[str, np.ndarray]:
        length = self._keys.context_length
        # Rank by rank over the neighbours: each neighbour's best, then each one's second best.
        by_rank = "neighbour rank -> (rank neighbour)"
        rows = rearrange(self._tops.row[neighbours], by_rank)
        values = rearrange(self._tops.activation[neighbours], by_rank)
        others = repeat(neighbours, "neighbour -> (rank neighbour)", rank=self._tops.row.shape[1])
        contexts = rows // length
        usable = (rows >= 0) & ~self._active[contexts]
        rows, values, others = rows[usable], values[usable], others[usable]
        _, first = np.unique(contexts[usable], return_index=True)
        chosen = np.sort(first)[: self._n_near]
        return {
            "near_sequence": rows[chosen] // length,
            "near_anchor": rows[chosen] % length,
            "near_feature": others[chosen],
            "near_activation": values[chosen],
        }

    def _random(self) -> dict[str, np.ndarray]:
        """The silent contexts that are drawn first, each with a position drawn in it."""
        chosen = np.zeros(0, np.int64)
        step = max(64, 4 * self._n_random)
        for start in range(0, len(self._drawn_order), step):
            candidates = self._drawn_order[start : start + step]
            chosen = np.concatenate([chosen, candidates[~self._active[candidates]]])[
                : self._n_random
            ]
            if len(chosen) == self._n_random:
                break
        anchors = self._keys.context_draw[chosen] % self._keys.lengths[chosen]
        return {"random_sequence": chosen, "random_anchor": anchors}
