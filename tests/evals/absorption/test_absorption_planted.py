"""Absorption planted by hand, a literal float64 loop, and probes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from saelab.evals.absorption.absorbed import Thresholds, absorption_of, hedging_of
from saelab.evals.absorption.probes import (
    f1_score,
    fit_probes,
    main_latents,
    rank_latents,
    sparse_f1,
)
from saelab.sparse import SparseCodes

PROBE = torch.tensor([2.0, 0.0, 0.0, 0.0])
W_DEC = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],  # the main latent
        [1.0, 1.0, 0.0, 0.0],  # carries the letter and a word
        [0.0, 0.0, 1.0, 0.0],  # something else
        [-1.0, 0.0, 0.0, 1.0],  # against the letter
    ]
)


def measured(codes, mains=(0,), **thresholds):
    codes = torch.tensor(codes)
    absorbed = absorption_of(
        SparseCodes.from_dense(codes), codes @ W_DEC, W_DEC, PROBE, mains, Thresholds(**thresholds)
    )
    return absorbed.fraction.tolist(), absorbed.full.tolist()


def test_the_planted_words_have_the_absorption_planted_in_them():
    fraction, full = measured(
        [
            [4.0, 0.0, 0.0, 0.0],  # the main latent fires alone
            [0.0, 4.0, 1.0, 0.0],  # the other stands in for it
            [1.0, 3.0, 0.0, 0.0],  # it fires, but three quarters are elsewhere
            [3.0, 1.0, 0.0, 0.0],  # too little is elsewhere
            [0.0, 0.0, 5.0, 0.0],  # nobody has the letter, and neither has the activation
        ]
    )
    assert fraction == [0, 1, 0.75, 0, 0]
    assert full == [False, True, False, False, False]


def test_thresholds_decide_what_absorbs():
    word = [[3.0, 1.0, 0.0, 0.0]]
    assert measured(word, least_share=0.0) == ([0.25], [False])
    silent = [[0.0, 4.0, 0.0, 0.0]]
    assert measured(silent, least_cosine=0.8) == ([0], [True])
    assert measured(silent, full_cosine=0.8) == ([1], [False])
    # Both are main latents, so nothing is absorbed: the letter is split.
    assert measured(silent, mains=(0, 1)) == ([0], [False])


def test_no_more_latents_absorb_than_allowed():
    W_dec = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    codes = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0]])
    x, probe = codes @ W_dec, torch.tensor([1.0, 0.0])
    for most, expected in ((1, 0.0), (2, 1.0), (None, 1.0)):
        absorbed = absorption_of(
            SparseCodes.from_dense(codes), x, W_dec, probe, [0], Thresholds(max_absorbing=most)
        )
        assert absorbed.fraction.tolist() == [expected]


def literal(codes, x, W_dec, probe, mains, t):
    """SAEBench's rules, one word at a time."""
    p = probe / np.linalg.norm(probe)
    along, cosine = W_dec @ p, (W_dec @ p) / np.linalg.norm(W_dec, axis=1)
    others = [j for j in range(len(along)) if j not in mains]
    fractions, fulls = [], []
    for a, row in zip(codes, x, strict=True):
        total, main = row @ p, sum(a[j] * along[j] for j in mains)
        able = [a[j] * along[j] for j in others if cosine[j] >= t.least_cosine]
        absorbing = sum(sorted([v for v in able if v > 0], reverse=True)[: t.max_absorbing])
        if total <= 0 or main >= total or absorbing / total < t.least_share:
            fractions.append(0.0)
        elif main <= 0:
            fractions.append(1.0)
        else:
            taken = min(absorbing, total - main)
            fractions.append(taken / (taken + main))
        top = max(range(len(along)), key=lambda j: a[j] * along[j])
        fulls.append(
            all(abs(a[j]) < 1e-8 for j in mains)
            and cosine[top] >= t.full_cosine
            and total > 0
            and a[top] * along[top] / total >= t.least_share
        )
    return fractions, fulls


@pytest.mark.parametrize(
    "thresholds", [Thresholds(), Thresholds(least_share=0.0, max_absorbing=None)]
)
def test_numbers_equal_the_literal_loop(thresholds):
    draw = np.random.default_rng(0)
    W_dec, probe = draw.normal(size=(30, 6)), draw.normal(size=6)
    codes = draw.exponential(size=(200, 30)) * (draw.random((200, 30)) < 0.2)
    x = codes @ W_dec + 0.3 * draw.normal(size=(200, 6))
    mains = [3, 17]
    fractions, fulls = literal(codes, x, W_dec, probe, mains, thresholds)
    assert 0 < np.mean(fulls) < 1
    assert len({*fractions}) > 10
    absorbed = absorption_of(
        SparseCodes.from_dense(torch.tensor(codes)),
        *map(torch.tensor, (x, W_dec, probe)),
        mains,
        thresholds,
    )
    assert absorbed.fraction.tolist() == pytest.approx(fractions, abs=1e-12)
    assert absorbed.full.tolist() == fulls


def test_no_words_and_no_main_latents_are_no_error():
    nothing = SparseCodes.from_dense(torch.zeros(0, 4))
    assert len(absorption_of(nothing, torch.zeros(0, 4), W_DEC, PROBE, [], Thresholds()).full) == 0
    assert measured([[0.0, 4.0, 0.0, 0.0]], mains=()) == ([1], [True])


def test_hedging_is_what_a_latent_has_of_other_letters():
    probes = torch.eye(5)[:3]
    direction = torch.tensor([0.6, 0.0, 0.0, 0.8, 0.0])
    assert hedging_of(direction, probes[0], probes[1:]) < 1e-12
    merged = torch.tensor([3.0, 0.0, 4.0, 0.0, 0.0])
    assert hedging_of(merged, probes[0], probes[1:]) == pytest.approx(0.64)
    # What another probe shares with the letter's own is no hedging.
    leaning = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    assert hedging_of(probes[0], probes[0], leaning) == 0
    random = torch.nn.functional.normalize(
        torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)), dim=1
    )
    hedged = [hedging_of(row, probes[0], probes[1:]) for row in random]
    assert np.mean(hedged) == pytest.approx(2 / 5, abs=0.03)


def test_a_narrow_dictionary_hedges_and_a_wide_one_does_not():
    """A parent on every row, a child on half of them: the best single latent holds some child."""
    rows = torch.eye(4)[0] + (torch.arange(400) % 2)[:, None] * torch.eye(4)[1]
    best = torch.linalg.svd(rows, full_matrices=False).Vh[0]
    both = hedging_of(best, torch.eye(4)[0], torch.eye(4)[1:2])
    # By hand: of the matrix [[1, 1/2], [1/2, 1/2]] the leading eigenvector is (2, √5 - 1).
    share = (5**0.5 - 1) ** 2
    assert both == pytest.approx(share / (4 + share), abs=1e-5)
    assert hedging_of(torch.eye(4)[0], torch.eye(4)[0], torch.eye(4)[1:2]) == 0


def test_probes_of_all_letters_are_those_of_each_letter_alone():
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(0)
    label = np.arange(300) % 3
    x = draw.normal(size=(300, 5)) * [1, 20, 1, 0.1, 1] + label[:, None] * [1, 0, 0.5, 0, 0] + 7
    truth = label[:, None] == np.arange(3)
    weights, bias = fit_probes(x, truth, 1e-2)
    scale = x.var(0).mean() ** 0.5
    z = (x - x.mean(0)) / scale
    for letter in range(3):
        alone = LogisticRegression(C=1 / (300 * 1e-2), class_weight="balanced", tol=1e-8)
        alone.fit(z, truth[:, letter])
        assert weights[:, letter] == pytest.approx(alone.coef_[0] / scale, rel=1e-2, abs=1e-3)
        score = x @ weights[:, letter] + bias[letter]
        assert score == pytest.approx(alone.decision_function(z), abs=1e-2)


def test_the_f1_is_that_of_the_library():
    from sklearn.metrics import f1_score as reference

    draw = np.random.default_rng(0)
    score, truth = draw.normal(size=(50, 2)), draw.random((50, 2)) < 0.3
    expected = [reference(truth[:, k], score[:, k] > 0) for k in range(2)]
    assert f1_score(score, truth).tolist() == pytest.approx(expected)
    assert f1_score(-np.ones(3), np.zeros(3, bool)) == 0


def test_a_split_letter_has_both_its_latents_and_a_whole_one_has_one():
    draw = np.random.default_rng(0)
    truth = np.arange(400) % 4 == 0
    codes = np.zeros((400, 6))
    codes[truth, 0] = 5
    codes[:, 5] = draw.random(400)
    half = truth & (np.arange(400) % 8 == 0)
    codes[half, 1], codes[truth & ~half, 2] = 5, 5
    whole, split = codes[:, [0, 3, 4, 5]], codes[:, [1, 2, 3, 5]]
    for columns, expected in ((whole, [0]), (split, [0, 1])):
        matrix = csr_matrix(columns)
        ranked = rank_latents(matrix[:200], truth[:200], 0.01, 10)
        f1 = sparse_f1(matrix[:200], truth[:200], matrix[200:], truth[200:], ranked)
        mains = main_latents(ranked, f1, 0.03)
        assert sorted(mains) == expected
        assert f1[len(mains) - 1] == 1
    assert f1[0] == pytest.approx(2 / 3)
    dead = csr_matrix(np.zeros((200, 3)))
    assert len(rank_latents(dead, truth[:200], 0.01, 10)) == 0
    assert len(main_latents(np.zeros(0, int), np.zeros(0), 0.03)) == 0
