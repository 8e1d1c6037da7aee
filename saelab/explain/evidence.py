"""What an explainer sees of a feature, and what its explanation is judged on, kept apart.

Every firing example comes from a context of its own, and a context is either shown or held out.
The same store and seed give the same evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest

import numpy as np

from saelab.features.reader import FeatureStore
from saelab.features.records import Example, FeatureRecord
from saelab.formats.files import hash_of

from .config import EvidenceSettings

MARKED_SHARE = 0.3
"""Of its largest activation, from which on a piece of a window is marked."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Examples of one feature; those where it fires from the strongest down."""

    feature: int
    shown: tuple[Example, ...]
    """Where it fires, for explaining: top examples and every stratum."""
    contrast: tuple[Example, ...]
    """Where it is silent, for explaining."""
    held_out: tuple[Example, ...]
    """Where it fires, for judging: other contexts, top examples and every stratum."""
    quiet: tuple[Example, ...]
    """Where it is silent, for judging: near misses and random ones."""


def gather(
    store: FeatureStore, feature: int, settings: EvidenceSettings, seed: int = 0
) -> Evidence:
    """The evidence of one feature; lists are short, or empty, where the store has no more.

    Args:
        store: an open feature store.
        feature: index of the latent.
        settings: how many examples, and how wide.
        seed: decides which half a context is in.

    Raises:
        ConfigError: there is no such feature.
        ArtifactError: the store is damaged.
    """
    record = store.feature(feature, settings.window)
    rng = np.random.default_rng([seed, feature])
    shown, held_out = _halves(_firing_lists(record), rng)
    silent = _halves([record.near_misses, record.random_silent], rng)
    contrast, quiet = (_in_turn(half, settings.n_quiet) for half in silent)
    if len(quiet) < settings.n_quiet and record.n_active:
        # A feature that fires in most contexts is silent in stretches between.
        whole = {e.sequence: e for e in chain(*_firing_lists(store.feature(feature, None)))}
        for half, examples in ((contrast, chain(*shown)), (quiet, chain(*held_out))):
            stretches = (_silent_stretch(whole[e.sequence], settings.window, rng) for e in examples)
            silent_ones = (stretch for stretch in stretches if stretch is not None)
            half += islice(silent_ones, settings.n_quiet - len(half))
    return Evidence(
        feature,
        shown=_strongest_first(_in_turn(shown, settings.n_shown)),
        contrast=tuple(contrast),
        held_out=_strongest_first(_in_turn(held_out, settings.n_held_out)),
        quiet=tuple(quiet),
    )


def in_fixed_order(features: Iterable[int], seed: int) -> list[int]:
    """Features in an order that no other feature decides, so that more of them ask no more."""
    return sorted(features, key=lambda feature: hash_of([seed, feature]))


def strong_pieces(window: Example) -> list[int]:
    """The pieces of a window that are marked: at least `MARKED_SHARE` of its largest activation."""
    values = window.activations.tolist()
    least = MARKED_SHARE * max(values, default=0.0)
    return [piece for piece, value in enumerate(values) if value > 0 and value >= least]


def marked_windows(evidence: Evidence, seed: int) -> list[tuple[Example, list[int]]]:
    """Held-out windows with their strong pieces, and silent ones with as many drawn at random."""
    marked = [(window, strong_pieces(window)) for window in evidence.held_out]
    count = round(sum(len(pieces) for _, pieces in marked) / max(1, len(marked)))
    rng = np.random.default_rng([seed, evidence.feature, 1])
    drawn = [rng.permutation(np.flatnonzero(window.counted)) for window in evidence.quiet]
    return marked + [
        (window, sorted(pieces[:count].tolist()))
        for window, pieces in zip(evidence.quiet, drawn, strict=True)
    ]


def _firing_lists(record: FeatureRecord) -> list[list[Example]]:
    """Top examples, each stratum's and random ones, every context once."""
    lists = [
        record.top_examples,
        *(group.examples for group in record.quantile_groups),
        record.random_positives,
    ]
    seen: set[int] = set()
    unique = []
    for examples in lists:
        fresh = {example.sequence: example for example in examples if example.sequence not in seen}
        seen |= set(fresh)
        unique.append(list(fresh.values()))
    return unique


def _halves(
    lists: Sequence[Sequence[Example]], rng: np.random.Generator
) -> tuple[list[list[Example]], list[list[Example]]]:
    """Every list divided in two, every second example in turn; a single one is in the first."""
    turn = int(rng.integers(2)) if sum(map(len, lists)) > 1 else 0
    halves: tuple[list[list[Example]], list[list[Example]]] = ([], [])
    for examples in lists:
        for half in (0, 1):
            halves[half].append(list(examples[(half + turn) % 2 :: 2]))
        turn += len(examples)
    return halves


def _in_turn(lists: Sequence[Sequence[Example]], count: int) -> list[Example]:
    """The first of each list, then the second of each, …, as many as are wanted."""
    rounds = zip_longest(*lists)
    examples = (example for each in rounds for example in each if example is not None)
    return list(islice(examples, count))


def _strongest_first(examples: Iterable[Example]) -> tuple[Example, ...]:
    return tuple(sorted(examples, key=lambda example: (-example.value, example.sequence)))


def _silent_stretch(whole: Example, window: int, rng: np.random.Generator) -> Example | None:
    """A window of a context in which the feature fires elsewhere; None where there is no room."""
    n_pieces = len(whole.texts)
    width = 2 * window + 1
    if n_pieces < width:
        return None
    firing = np.concatenate([[0], np.cumsum(whole.activations > 0)])
    starts = np.flatnonzero(firing[width:] == firing[:-width])
    if not len(starts):
        return None
    start = int(rng.choice(starts))
    part = slice(start, start + width)
    return replace(
        whole,
        texts=whole.texts[part],
        token_ids=whole.token_ids[part],
        positions=whole.positions[part],
        activations=whole.activations[part],
        counted=whole.counted[part],
        anchor=window,
        value=0.0,
    )
