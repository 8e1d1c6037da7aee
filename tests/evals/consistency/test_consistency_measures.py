"""The parts of the suite "consistency" against literal versions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.dictionary import Dictionary
from saelab.errors import ActivationError
from saelab.evals.consistency.activity import ActivityStatistics
from saelab.evals.consistency.scores import compare, scores_of
from saelab.evals.curves import fractions_for, n_top, share_above, share_at_least
from saelab.stats import cosines
from saelab.stats.assignment import TOLERANCE, auction, best_assignment
from saelab.stats.cosines import directions_of, nearest, random_directions


def unit(n, d, seed):
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


@pytest.mark.parametrize("block_entries", [1, 7, 1 << 24])
def test_nearest_equals_the_whole_matrix(monkeypatch, block_entries):
    monkeypatch.setattr(cosines, "BLOCK_ENTRIES", block_entries)
    one, other = unit(23, 5, 0), unit(17, 5, 1)
    cosine, place, back, back_place = nearest(one, other)
    whole = one @ other.T
    assert torch.equal(place, whole.argmax(1)) and torch.equal(back_place, whole.argmax(0))
    torch.testing.assert_close(cosine, whole.amax(1))
    torch.testing.assert_close(back, whole.amax(0))


def test_cosines_are_signed_and_rows_need_not_be_of_norm_one():
    W_dec = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    directions = directions_of(W_dec, torch.tensor([True, False, True]))
    assert directions.latent.tolist() == [0, 2]
    assert directions.rows.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    cosine, *_ = nearest(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [0.6, 0.8]]))
    assert cosine.item() == pytest.approx(0.6)


@given(
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    d=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    kept=st.integers(1, 30),
)
@settings(max_examples=50, deadline=None)
def test_matching_is_one_to_one_and_within_its_tolerance_of_the_best(n, m, d, seed, kept):
    one, other = unit(n, d, seed), unit(m, d, seed + 1)
    partner, gap = auction(one, other, kept_columns=kept)
    taken = partner[partner >= 0]
    assert len(taken) == len(set(taken.tolist())) == min(n, m)
    scores = (one @ other.T).double().numpy()
    best = best_assignment(scores)
    rows = np.flatnonzero(best >= 0)
    optimum = scores[rows, best[rows]].sum()
    found = sum(scores[row, column] for row, column in enumerate(partner.tolist()) if column >= 0)
    assert found >= optimum - gap * min(n, m) - 1e-5


def test_matching_does_not_depend_on_blocks_or_kept_columns(monkeypatch):
    one, other = unit(60, 8, 0), unit(75, 8, 1)
    expected, gap = auction(one, other)
    assert 0 <= gap <= TOLERANCE
    for kept in (2, 3, 20):
        assert torch.equal(auction(one, other, kept_columns=kept)[0], expected)
    monkeypatch.setattr(cosines, "BLOCK_ENTRIES", 100)
    assert torch.equal(auction(one, other)[0], expected)


def test_rows_that_outbid_one_another_for_long_come_to_an_end():
    """Eleven rows want the same ten columns, and one must be content with the opposite."""
    one, other = torch.ones(11, 1), torch.ones(11, 1)
    other[3] = -1
    partner, gap = auction(one, other)
    assert sorted(partner.tolist()) == list(range(11))
    assert gap < 0.2


def test_duplicates_cannot_share_a_partner():
    """Three copies of a direction are all found, but only one has a partner of cosine 1."""
    directions = torch.eye(4)
    copies = directions[[0, 0, 0, 1]]
    mine, theirs = compare(directions_of(copies), directions_of(directions))
    assert mine.cosine.tolist() == [1, 1, 1, 1]
    assert sorted(mine.partner_cosine.tolist()) == [0, 0, 1, 1]
    assert mine.mutual.tolist() == [True, False, False, True]
    assert theirs.cosine.tolist() == [1, 1, 0, 0]
    for latent, partner in enumerate(mine.partner.tolist()):
        assert theirs.partner[partner] == latent


def test_a_permuted_dictionary_is_found_whole_and_one_to_one():
    rows = unit(40, 12, 0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    mine, theirs = compare(directions_of(rows), directions_of(7 * rows[order]))
    assert torch.equal(order[mine.nearest], torch.arange(40))
    assert torch.equal(mine.partner, mine.nearest)
    assert bool(mine.mutual.all()) and bool(theirs.mutual.all())
    assert mine.partner_cosine.min() > 1 - 1e-6


def test_latents_left_over_have_no_partner_and_only_alive_ones_are_compared():
    rows = unit(6, 9, 0)
    alive = torch.tensor([True, True, False, True, True, False])
    mine, theirs = compare(directions_of(rows, alive), directions_of(rows[[4, 0]]))
    assert mine.partner.tolist() == [1, -1, -1, 0]
    assert mine.partner_cosine.isnan().tolist() == [False, True, True, False]
    assert theirs.partner.tolist() == [4, 0]
    assert theirs.nearest.tolist() == [4, 0]


def test_scores_are_means_over_the_others_and_a_missing_partner_counts_as_zero():
    rows = unit(5, 16, 0)
    directions = directions_of(rows)
    first, _ = compare(directions, directions_of(rows[:3]))
    second, _ = compare(directions, directions_of(unit(5, 16, 1)))
    scores = scores_of(directions, [first, second], None)
    torch.testing.assert_close(scores.mcs, (first.cosine + second.cosine) / 2)
    expected = (first.partner_cosine.nan_to_num(0) + second.partner_cosine) / 2
    torch.testing.assert_close(scores.one_to_one, expected)
    assert first.partner.tolist() == [0, 1, 2, -1, -1]
    assert scores.rankings == {}


@given(seed=st.integers(0, 1000), n=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_curves_equal_counting(seed, n):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, generator=generator, dtype=torch.float64)
    order = torch.randperm(n, generator=generator)
    fractions = fractions_for(n)
    assert fractions[-1] == 1 and fractions[0] == pytest.approx(1 / n)
    assert fractions == sorted(set(fractions))
    found = share_above(values, order, 0.4, fractions)
    for fraction, share in zip(fractions, found, strict=True):
        top = [values[place].item() for place in order[: n_top(fraction, n)].tolist()]
        assert share == pytest.approx(sum(value > 0.4 for value in top) / len(top))
    cosines_ = [0.0, 0.25, float(values[0]), 1.0]
    expected = [(values >= cosine).double().mean().item() for cosine in cosines_]
    assert share_at_least(values, cosines_) == pytest.approx(expected)


def dictionaries():
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(6, 10, generator=generator)
    W_dec = 2 * torch.randn(10, 6, generator=generator)
    shared = {"W_enc": W_enc, "W_dec": W_dec, "b_dec": torch.randn(6, generator=generator)}
    bias = torch.randn(10, generator=generator)
    yield Dictionary("relu", b_enc=bias, **shared)
    yield Dictionary("topk", b_enc=bias, k=3, **shared)
    yield Dictionary("jumprelu", b_enc=bias, threshold=bias.abs(), **shared)
    extra = dict.fromkeys(("b_gate", "b_mag", "r_mag"), bias)
    yield Dictionary("gated", **extra, **shared)
    scaled = {"input_normalisation": "constant_norm_rescale", **shared}
    yield Dictionary("topk", b_enc=bias, k=3, **scaled)


@pytest.mark.parametrize("dictionary", list(dictionaries()), ids=lambda d: d.architecture)
def test_activity_equals_all_rows_at_once(dictionary):
    generator = torch.Generator().manual_seed(1)
    rows = 3 + torch.randn(70, 6, generator=generator)
    statistics = ActivityStatistics(dictionary)
    for part in rows.split(13):
        statistics.update(part)
    activity = statistics.activity()
    codes = dictionary.encode_dense(rows).double()
    inputs = rows.double()
    if dictionary.input_normalisation != "none":
        scale = inputs.norm(dim=1, keepdim=True) / 6**0.5
        inputs, codes = inputs / scale, codes * scale
    pre = (inputs - dictionary.b_dec.double()) @ dictionary.W_enc.double()
    z_score = (pre.amax(0) - pre.mean(0)) / pre.std(0, correction=0)
    norm = dictionary.W_dec.double().norm(dim=1)
    torch.testing.assert_close(activity.density, (codes > 0).double().mean(0))
    torch.testing.assert_close(activity.max_activation, codes.amax(0) * norm, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(activity.z_score, z_score, rtol=1e-5, atol=1e-5)
    assert activity.n_rows == 70
    assert torch.equal(activity.alive(), (codes > 0).any(0))


def test_a_latent_that_does_not_vary_has_no_z_score_and_ranks_last():
    dictionary = Dictionary(
        "relu",
        W_enc=torch.tensor([[0.0, 1.0]]),
        W_dec=torch.ones(2, 1),
        b_dec=torch.zeros(1),
        b_enc=torch.ones(2),
    )
    statistics = ActivityStatistics(dictionary)
    with pytest.raises(ActivationError, match="no activation row is left to rank latents by"):
        statistics.activity()
    statistics.update(torch.arange(5.0)[:, None])
    activity = statistics.activity()
    assert activity.z_score.isnan().tolist() == [True, False]
    directions = directions_of(torch.eye(2))
    scores = scores_of(directions, [compare(directions, directions)[0]], activity)
    assert scores.order("z_score").tolist() == [1, 0]


def test_random_directions_are_reproducible_and_not_those_of_a_training():
    drawn = random_directions(50, 24, 0)
    assert torch.equal(drawn, random_directions(50, 24, 0))
    assert not torch.equal(drawn, random_directions(50, 24, 1))
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(50))
    started = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity(drawn, started, dim=1)
    assert cosine.abs().max() < 0.8
