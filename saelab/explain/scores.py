"""From what a judge said of examples to scores: with 95 % intervals, beside two controls.

A score is a function of how often each example is counted: once for the value, as often as it was
drawn for a resample. Firing and silent examples are drawn apart, so that none lacks either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from saelab.features.label_content import Score
from saelab.features.records import Example

from .evidence import Evidence, marked_windows

JUDGED = ("detection", "fuzzing", "simulation")
"""What a judge is asked for."""
N_RESAMPLES = 1000
ENDS = (0.025, 0.975)
"""Quantiles of the resamples that are an interval's ends."""
Description = TypeVar("Description", contravariant=True)
Text = TypeVar("Text")
Verdicts = Sequence[bool | None]
"""Yes or no for each example; None where the answer could not be read, which counts nowhere."""


@runtime_checkable
class Judging(Protocol[Description]):
    """Says what an explanation predicts of examples: a language model, or a rule applied."""

    def detect(self, description: Description, windows: Sequence[Example]) -> Verdicts:
        """Whether the feature fires in each window."""
        ...

    def fuzz(
        self, description: Description, windows: Sequence[tuple[Example, Collection[int]]]
    ) -> Verdicts:
        """Whether the marked pieces of each window are the feature's."""
        ...

    def simulate(
        self, description: Description, windows: Sequence[Example]
    ) -> Sequence[Float[np.ndarray, " _"] | None]:
        """The activation expected at each piece, in any unit."""
        ...


@dataclass(frozen=True, eq=False)
class Measured:
    """What was judged, as a function of weights."""

    of: Callable[[Float[np.ndarray, "draws items"]], Float[np.ndarray, " draws"]]
    """The score under weights of the items; NaN where undefined."""
    known: Bool[np.ndarray, " items"]
    """Items with an answer."""

    def value(self) -> float:
        """The score; NaN where it is undefined."""
        return float(self.of(np.ones((1, len(self.known))))[0])


def balanced_accuracy(fires: Sequence[bool], said: Verdicts) -> Measured:
    """Mean of the shares of firing and of silent items that were judged right."""
    truth = np.array(fires, bool)
    known = np.array([verdict is not None for verdict in said], bool)
    right = known & (np.array([bool(verdict) for verdict in said], bool) == truth)
    sides = [truth & right, truth & known, ~truth & right, ~truth & known]
    counts = np.stack(sides, axis=1).astype(np.float64)

    def of(weights: Float[np.ndarray, "draws items"]) -> Float[np.ndarray, " draws"]:
        right_firing, firing, right_silent, silent = (weights @ counts).T
        return (_divided(right_firing, firing) + _divided(right_silent, silent)) / 2

    return Measured(of, known)


def correlation(
    true: Sequence[Float[np.ndarray, " _"]],
    predicted: Sequence[Float[np.ndarray, " _"] | None],
) -> Measured:
    """Pearson correlation over all tokens of all items; 0 where every prediction is the same."""
    known = np.array([guess is not None for guess in predicted], bool)
    both = zip(true, predicted, strict=True)
    pairs = [(activations, guess) for activations, guess in both if guess is not None]
    item = np.repeat(np.flatnonzero(known), [len(activations) for activations, _ in pairs])
    x, y = (np.concatenate([np.zeros(0), *(pair[side] for pair in pairs)]) for side in (0, 1))
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(item, column, len(known)) for column in columns], axis=1)

    def of(weights: Float[np.ndarray, "draws items"]) -> Float[np.ndarray, " draws"]:
        n, x, y, xx, yy, xy = (weights @ sums).T
        spread_x, spread_y = n * xx - x * x, n * yy - y * y
        spread = np.sqrt(np.maximum(spread_x * spread_y, 0))
        flat = np.where(spread_x > _ROUNDING * n * xx, 0.0, np.nan)
        told = (spread_y > _ROUNDING * n * yy) & (spread > 0)
        return np.divide(n * xy - x * y, spread, out=flat, where=told & ~np.isnan(flat))

    return Measured(of, known)


def ranking(fires: Sequence[bool], similarity: Sequence[float]) -> Measured:
    """How often a firing item is more similar to the explanation than a silent one (AUC)."""
    truth, values = np.array(fires, bool), np.asarray(similarity, np.float64)
    above = values[truth][:, None] - values[~truth][None, :]
    wins = (above > 0) + 0.5 * (above == 0)

    def of(weights: Float[np.ndarray, "draws items"]) -> Float[np.ndarray, " draws"]:
        firing, silent = weights[:, truth], weights[:, ~truth]
        return _divided(((firing @ wins) * silent).sum(1), firing.sum(1) * silent.sum(1))

    return Measured(of, np.ones(len(truth), bool))


def share_right(right: Sequence[float | None]) -> Measured:
    """Mean over items of how right each answer is: 1, 0, or 0.5 where it was left to chance."""
    known = np.array([answer is not None for answer in right], bool)
    values = np.array([answer or 0.0 for answer in right])
    return Measured(lambda weights: _divided(weights @ values, weights @ known), known)


def score_of(
    name: str,
    fires: Sequence[bool],
    explanation: Measured,
    *,
    shuffled: Measured | None,
    random: Measured | None,
) -> Score | None:
    """A score with its interval and controls; None where it is undefined.

    Args:
        name: what was measured.
        fires: of every item, whether it is one of the feature.
        own: of the explanation.
        shuffled: of another feature's explanation.
        random: of a text that explains nothing.
    """
    value = explanation.value()
    if not np.isfinite(value):
        return None
    resampled = explanation.of(_draws(tuple(map(bool, fires))))
    resampled = np.sort(resampled[np.isfinite(resampled)])
    low, high = resampled[[int(end * (len(resampled) - 1)) for end in ENDS]].tolist()
    controls = [None if control is None else control.value() for control in (shuffled, random)]
    defined = (value if value is not None and np.isfinite(value) else None for value in controls)
    return Score(name, value, low, high, int(explanation.known.sum()), *defined)


def judged(
    judge: Judging[Text],
    evidence: Evidence,
    explanation: Text,
    *,
    shuffled: Text | None,
    random: Text | None,
    names: Collection[str] = JUDGED,
    seed: int = 0,
) -> tuple[Score, ...]:
    """Have an explanation and its controls judged on the same held-out examples.

    Args:
        judge: who judges.
        evidence: of the feature that `own` explains.
        own: the explanation.
        shuffled: another feature's explanation.
        random: a text that explains nothing.
        names: which of detection, fuzzing and simulation; what the evidence cannot give is left
            out.
        seed: decides which pieces of silent examples are marked.
    """
    windows = evidence.held_out + evidence.quiet
    fires = [True] * len(evidence.held_out) + [False] * len(evidence.quiet)
    marked = marked_windows(evidence, seed)
    true = [window.activations[window.counted] for window in windows]

    def measured(name: str, text: Text) -> Measured:
        if name == "detection":
            return balanced_accuracy(fires, judge.detect(text, windows))
        if name == "fuzzing":
            return balanced_accuracy(fires, judge.fuzz(text, marked))
        guesses = zip(judge.simulate(text, windows), windows, strict=True)
        return correlation(
            true, [None if guess is None else guess[window.counted] for guess, window in guesses]
        )

    scores = [
        score_of(
            name,
            fires,
            measured(name, explanation),
            shuffled=None if shuffled is None else measured(name, shuffled),
            random=None if random is None else measured(name, random),
        )
        for name in JUDGED
        if name in names and evidence.held_out
    ]
    return tuple(score for score in scores if score is not None)


_ROUNDING = 1e-12
"""A spread below this share of the mean square is that of equal numbers."""


def _divided(
    above: Float[np.ndarray, " draws"], below: Float[np.ndarray, " draws"]
) -> Float[np.ndarray, " draws"]:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


@lru_cache(maxsize=256)
def _draws(fires: tuple[bool, ...]) -> Float[np.ndarray, "draws items"]:
    """How often each item is drawn in each resample; the same for the same items."""
    truth = np.array(fires)
    rng = np.random.default_rng(0)
    draws = np.zeros((N_RESAMPLES, len(truth)))
    for kind in (truth, ~truth):
        n = int(kind.sum())
        if n:
            draws[:, kind] = rng.multinomial(n, np.full(n, 1 / n), N_RESAMPLES)
    return draws
