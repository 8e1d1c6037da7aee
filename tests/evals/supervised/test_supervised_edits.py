"""Greedy edits against the naive search, edits by interpretation, weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evals.supervised import edits
from saelab.evals.supervised.edits import (
    GreedySteps,
    aware_edit,
    greedy_edit,
    weight_removed,
    weights,
)


def drawn(seed, rows=7, d_sae=19, d_in=6, active=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def codes():
        values = torch.rand(rows, d_sae, generator=generator, dtype=dtype) + 0.1
        return values * (torch.rand(rows, d_sae, generator=generator) < active)

    W_dec = torch.randn(d_sae, d_in, generator=generator, dtype=dtype)
    start, target = (torch.randn(rows, d_in, generator=generator, dtype=dtype) for _ in range(2))
    return start, target, codes(), codes(), W_dec


def naive(start, target, before, after, W_dec, k, variant):
    """Try every candidate of every row with the whole [rows, d_sae, d_in] tensor."""
    edited, used = start.clone(), torch.zeros_like(before, dtype=torch.bool)
    for _ in range(k):
        moves = [after - before] if variant == "joint" else [after - before, -before, after]
        distance = (edited - target).square().sum(1)
        best = torch.full((len(start),), torch.inf, dtype=start.dtype)
        chosen = torch.zeros(len(start), dtype=torch.int64)
        change = torch.zeros_like(best)
        for move in moves:
            tried = edited.unsqueeze(1) + move.unsqueeze(2) * W_dec
            found = (tried - target.unsqueeze(1)).square().sum(2)
            found[used | (move == 0)] = torch.inf
            nearest, place = found.min(1)
            better = nearest < best
            best = torch.where(better, nearest, best)
            chosen = torch.where(better, place, chosen)
            change = torch.where(better, move.gather(1, place[:, None])[:, 0], change)
        moved = best < distance
        edited += torch.where(moved, change, 0.0)[:, None] * W_dec[chosen]
        used[moved, chosen[moved]] = True
    return edited


@pytest.mark.parametrize("variant", ["joint", "free"])
@pytest.mark.parametrize("gathered", [1, 1 << 23])
@pytest.mark.parametrize("k", [2, 4, 8])
def test_greedy_equals_the_naive_search(monkeypatch, variant, gathered, k):
    monkeypatch.setattr(edits, "MOST_GATHERED", gathered)
    for seed in range(4):
        start, target, before, after, W_dec = drawn(seed)
        steps = greedy_edit(start, target, before, after, W_dec, 8, variant)
        found = steps.first(k).apply(start, W_dec)
        torch.testing.assert_close(
            found, naive(start, target, before, after, W_dec, k, variant), rtol=0, atol=1e-12
        )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), active=st.floats(0.0, 1.0))
def test_greedy_only_comes_nearer_and_moves_a_latent_once(seed, k, active):
    start, target, before, after, W_dec = drawn(seed, active=active)
    steps = greedy_edit(start, target, before, after, W_dec, k)
    distances = [(steps.first(i).apply(start, W_dec) - target).norm(dim=1) for i in range(k + 1)]
    for nearer, farther in zip(distances[1:], distances, strict=False):
        assert bool((nearer <= farther + 1e-12).all())
    for row in steps.latent.tolist():
        moved = [latent for latent in row if latent >= 0]
        assert len(moved) == len(set(moved)) and row[: len(moved)] == moved


def test_a_latent_active_on_both_sides_is_moved_in_one_step():
    W_dec = torch.eye(3)
    before, after = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[5.0, 0.0, 0.0]])
    steps = greedy_edit(before, after, before, after, W_dec, 2)
    assert steps.latent.tolist() == [[0, -1]] and steps.change.tolist() == [[3.0, 0.0]]


def test_free_moves_may_leave_what_a_joint_move_would_have_to_take_along():
    # The start needs latent 0 away, but the target's own code of latent 0 points elsewhere.
    W_dec = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    start, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    before, after = torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 0.0]])
    joint = greedy_edit(start, target, before, after, W_dec, 1, "joint")
    free = greedy_edit(start, target, before, after, W_dec, 1, "free")
    assert joint.latent.item() == -1
    assert free.apply(start, W_dec).tolist() == [[0.0, 0.0]]


def test_no_candidates_and_a_complete_edit():
    start, target, before, after, _ = drawn(1, d_sae=6, active=1.0)
    eye = torch.eye(6, dtype=torch.float64)
    nothing = greedy_edit(start, target, 0 * before, 0 * after, eye, 3)
    assert torch.equal(nothing.apply(start, eye), start)
    complete = greedy_edit(before, after, before, after, eye, 6)
    torch.testing.assert_close(complete.apply(before, eye), after)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_weights_sum_to_one_with_their_signs(seed):
    _, _, codes, _, W_dec = drawn(seed, active=0.4)
    share = weights(codes, W_dec)
    some = (codes != 0).any(1)
    torch.testing.assert_close(share[some].sum(1), torch.ones(int(some.sum()), dtype=torch.float64))
    assert bool(share[~some].isnan().all())
    explained = codes @ W_dec
    literal = torch.stack(
        [
            codes[:, j] * (explained @ W_dec[j]) / explained.square().sum(1)
            for j in range(len(W_dec))
        ],
        dim=1,
    )
    torch.testing.assert_close(share, literal, equal_nan=True)


def test_weight_removed_counts_removed_latents_only_and_nothing_where_nothing_is_active():
    share = torch.tensor([[0.7, 0.5, -0.2, 0.0], [torch.nan] * 4])
    steps = GreedySteps(torch.tensor([[0, 3, 2], [1, -1, -1]]), torch.ones(2, 3))
    found = weight_removed(share, steps)
    torch.testing.assert_close(found[0], torch.tensor([0.7, 0.7, 0.5]))
    assert bool(found[1].isnan().all())


def test_aware_edit_takes_the_best_active_latents_of_each_side():
    scores = torch.tensor([[0.9, 0.0], [0.5, 0.0], [0.4, 0.0], [0.0, 0.8], [0.0, 0.3]])
    before = torch.tensor([[0.0, 2.0, 3.0, 0.0, 0.0]])
    after = torch.tensor([[0.0, 0.0, 0.0, 4.0, 5.0]])
    old, new = [torch.tensor([0])], [torch.tensor([1])]
    out, into = aware_edit(before, after, [scores], old, new, 1)
    assert out.tolist() == [[0.0, 2.0, 0.0, 0.0, 0.0]]
    assert into.tolist() == [[0.0, 0.0, 0.0, 4.0, 0.0]]
    # Latent 0 has the highest F1 but is not active: the literal list removes nothing.
    out, _ = aware_edit(before, after, [scores], old, new, 1, active_only=False)
    assert not bool(out.any())
    out, into = aware_edit(before, after, [scores], old, new, 2)
    assert out.tolist() == [[0.0, 2.0, 3.0, 0.0, 0.0]]
    assert into.tolist() == [[0.0, 0.0, 0.0, 4.0, 5.0]]


def test_aware_edit_of_two_attributes_is_the_union_of_both_lists():
    one = torch.tensor([[0.9, 0.0], [0.0, 0.9], [0.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.9, 0.0], [0.0, 0.9]])
    before = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    after = torch.tensor([[0.0, 3.0, 0.0, 4.0]])
    old, new = [torch.tensor([0])] * 2, [torch.tensor([1])] * 2
    out, into = aware_edit(before, after, [one, other], old, new, 1)
    assert torch.equal(out, before) and torch.equal(into, after)
