"""Scores against the plain definitions in float64, their intervals and their controls."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, pearsonr

from saelab.explain.scores import (
    balanced_accuracy,
    correlation,
    ranking,
    score_of,
    share_right,
)


def drawn(seed, n=40):
    rng = np.random.default_rng(seed)
    fires = rng.random(n) < 0.6
    said = [None if rng.random() < 0.2 else bool(rng.random() < (0.8 if f else 0.3)) for f in fires]
    true = [np.where(rng.random(k) < 0.2, rng.random(k) * 9, 0) for k in rng.integers(5, 30, n)]
    guessed = [None if rng.random() < 0.1 else t + rng.normal(0, 2, len(t)) for t in true]
    return fires.tolist(), said, true, guessed


@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_the_plain_definitions(seed):
    fires, said, true, guessed = drawn(seed)
    answered = [(f, s) for f, s in zip(fires, said, strict=True) if s is not None]
    shares = [np.mean([s == f for f, s in answered if f is kind]) for kind in (True, False)]
    assert balanced_accuracy(fires, said).value() == pytest.approx(np.mean(shares), abs=1e-15)

    read = [(t, g) for t, g in zip(true, guessed, strict=True) if g is not None]
    x, y = (np.concatenate(part) for part in zip(*read, strict=True))
    assert correlation(true, guessed).value() == pytest.approx(pearsonr(x, y).statistic, abs=1e-12)

    similarity = np.round(np.random.default_rng(seed).random(len(fires)), 1)
    truth = np.array(fires)
    wins = mannwhitneyu(similarity[truth], similarity[~truth]).statistic
    area = wins / (truth.sum() * (~truth).sum())
    assert ranking(fires, similarity.tolist()).value() == pytest.approx(area, abs=1e-12)


def test_intervals_are_those_of_drawing_examples_again():
    fires, _, true, _ = drawn(1)
    guessed = [t + np.random.default_rng(i).normal(0, 3, len(t)) for i, t in enumerate(true)]
    score = score_of("simulation", fires, correlation(true, guessed), shuffled=None, random=None)
    rng = np.random.default_rng(7)
    kinds = [np.flatnonzero(np.array(fires) == kind) for kind in (True, False)]
    values = []
    for _ in range(2000):
        chosen = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        x, y = (np.concatenate([part[i] for i in chosen]) for part in (true, guessed))
        values.append(np.corrcoef(x, y)[0, 1])
    assert score.low < score.value < score.high
    assert [score.low, score.high] == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=0.02)


def test_a_guess_that_never_changes_correlates_with_nothing():
    true = [np.array([0.0, 1.0, 0.0]), np.array([2.0, 0.0, 0.1])]
    assert correlation(true, [np.full(3, 0.3)] * 2).value() == 0
    assert np.isnan(correlation([np.full(3, 0.3)] * 2, true).value())


def test_undefined_scores_are_none_and_unreadable_answers_count_nowhere():
    def score(fires, said, **controls):
        own = balanced_accuracy(fires, said)
        return score_of("detection", fires, own, **{"shuffled": None, "random": None, **controls})

    assert score([True, True], [True, False]) is None
    assert score([True, False], [None, None]) is None
    assert score([], []) is None
    fires = [True, True, False, False]
    counted = score(fires, [True, None, False, True], shuffled=balanced_accuracy(fires, [None] * 4))
    assert (counted.value, counted.n, counted.shuffled, counted.random) == (0.75, 3, None, None)
    assert share_right([1.0, 0.5, None, 0.0]).value() == 0.5
