"""Selections by threshold, per batch and per latent against full sorts in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.sparse import PreActivations, select_above, select_batch_top, select_latent_top


def problem(rows, d_in, d_sae, seed=0, dtype=torch.float64, ties=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        drawn = torch.randn(*shape, generator=generator, dtype=dtype)
        return drawn.round() if ties else drawn

    x, W_enc, b_enc = draw(rows, d_in), draw(d_sae, d_in).T, draw(d_sae)
    return x, W_enc, b_enc, x @ W_enc + b_enc


SHAPES = [(1, 3, 5), (7, 4, 16), (600, 5, 96), (1030, 3, 7), (3, 2, 1), (0, 3, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", [-5.0, 0.0, 2.5, 100.0])
def test_every_pair_above_its_floor_is_found(shape, level):
    x, W_enc, b_enc, pre = problem(*shape)
    floor = level + torch.rand(shape[2], dtype=torch.float64)
    found = select_above(PreActivations(x, W_enc, b_enc), floor)
    expected = torch.where(pre > floor, pre, 0.0)
    torch.testing.assert_close(found.to_dense(), expected)
    assert found.latent.shape[0] == int((pre > floor).sum())


@settings(max_examples=80, deadline=None)
@given(
    shape=st.sampled_from(SHAPES[:5]),
    count=st.integers(1, 400),
    floor=st.sampled_from([None, 0.0, 0.5, 2.0, 50.0]),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batch_top_equals_a_full_sort_whatever_the_floor(shape, count, floor, ties, seed):
    x, W_enc, b_enc, pre = problem(*shape, seed=seed, ties=ties)
    start = None if floor is None else torch.tensor(floor, dtype=torch.float64)
    top = select_batch_top(PreActivations(x, W_enc, b_enc), count, start)
    positive = pre[pre > 0].sort(descending=True).values
    expected = positive[:count]
    torch.testing.assert_close(top.codes.value.sort(descending=True).values, expected)
    torch.testing.assert_close(top.codes.to_dense().sum(), expected.sum())
    smallest = float(expected[-1]) if len(positive) >= count else 0.0
    assert float(top.threshold) == pytest.approx(smallest)
    assert float(top.next_floor) <= (float(expected[-1]) if len(expected) else 0.0) + 1e-12


@settings(max_examples=80, deadline=None)
@given(
    shape=st.sampled_from(SHAPES[:5]),
    most=st.integers(0, 30),
    floor=st.sampled_from([0.0, 0.5, 2.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_latent_top_equals_a_sort_of_each_column_whatever_the_floors(shape, most, floor, seed):
    x, W_enc, b_enc, pre = problem(*shape, seed=seed, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    budgets = torch.randint(0, most + 1, (shape[2],), generator=generator)
    floors = floor * torch.rand(shape[2], generator=generator)
    top = select_latent_top(PreActivations(x, W_enc, b_enc), budgets, floors)
    rank = pre.argsort(dim=0, descending=True).argsort(dim=0)
    expected = torch.where((rank < budgets) & (pre > 0), pre, 0.0)
    torch.testing.assert_close(top.codes.to_dense(), expected)
    for latent in range(shape[2]):
        column = expected[:, latent]
        full = int(budgets[latent]) and int((column > 0).sum()) == int(budgets[latent])
        smallest = float(column[column > 0].min()) if full else 0.0
        assert float(top.thresholds[latent]) == pytest.approx(smallest, rel=1e-5)


def test_the_next_floor_lets_the_next_batch_be_found_in_one_search():
    x, W_enc, b_enc, pre = problem(2048, 16, 256)
    before, after = (PreActivations(part, W_enc, b_enc) for part in x.split(1024))
    first = select_batch_top(before, 4096)
    found = select_above(after, first.next_floor)
    assert 4096 <= found.latent.shape[0] < 1.6 * 4096
    budgets = torch.arange(256) % 20 + 1
    latent = select_latent_top(before, budgets, torch.zeros(256).double())
    counts = (pre[1024:] > latent.next_floors).sum(0)
    assert (counts >= budgets).double().mean() > 0.93
    assert counts.sum() < 3 * budgets.sum()


def test_bfloat16_product_finds_what_the_exact_one_does_but_for_its_rounding():
    x, W_enc, b_enc, pre = problem(512, 64, 512, dtype=torch.float32)
    exact = select_batch_top(PreActivations(x, W_enc, b_enc), 4096).codes.to_dense()
    top = select_batch_top(PreActivations(x, W_enc, b_enc, torch.bfloat16), 4096)
    fast = top.codes.to_dense()
    # Candidates are found in bfloat16 with room to spare and ranked by exact values.
    assert ((exact > 0) != (fast > 0)).sum() <= 4
    torch.testing.assert_close(fast[fast > 0], pre[fast > 0], rtol=1e-5, atol=1e-5)
