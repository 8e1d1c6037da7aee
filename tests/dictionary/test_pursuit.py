"""Gradient pursuit against the algorithm written out densely, and where that one breaks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.dictionary import Dictionary, pursuit_state, strongest_latent
from saelab.dictionary.pursuit import PursuitEncoder
from saelab.dictionary.strongest_latent import LatentScreen
from saelab.errors import ConfigError
from saelab.stats.metrics import fvu


def dense_pursuit(latents, signal, counts, *, mask_active=False):
    """The algorithm with dense float64 matrices; a row that cannot go on stays as it is."""
    d_sae = len(latents)
    weight = signal.new_zeros(len(signal), d_sae)
    going = torch.ones(len(signal), dtype=torch.bool)
    norm = signal.norm(dim=1) * latents.norm(dim=1).max()
    smallest = 1e-12 * signal.square().sum(1) * float(latents.square().sum(1).max()) ** 2
    for step in range(int(counts.clamp(max=d_sae).max())):
        residual = signal - weight @ latents
        product = residual @ latents.T
        searched = product.clone()
        if mask_active:
            searched[weight != 0] = -torch.inf
        best, latent = searched.max(1)
        active = weight != 0
        active[torch.arange(len(signal)), latent] = True
        direction = torch.where(active, product, 0.0)
        change = direction @ latents
        square = change.square().sum(1)
        going &= (best > 1e-12 * norm) & (square > smallest) & (counts > step)
        size = (change * residual).sum(1) / torch.where(going, square, 1.0)
        moved = (weight + size[:, None] * direction).clamp(min=0)
        weight = torch.where(going[:, None], moved, weight)
    return weight


def dictionary_of(d_in, d_sae, seed=0, norms=None, k=4, **options):
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    if norms is not None:
        W_dec *= norms[:, None]
    return Dictionary(
        "topk",
        W_enc=W_dec.T.contiguous(),
        W_dec=W_dec,
        b_dec=torch.randn(d_in, generator=generator, dtype=torch.float64),
        b_enc=torch.zeros(d_sae, dtype=torch.float64),
        k=min(k, d_sae),
        **options,
    )


def mixtures(dictionary, rows, seed=1, share=0.1, noise=0.3):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, dictionary.d_sae)
    weight = torch.rand(shape, generator=generator, dtype=torch.float64)
    weight *= torch.rand(shape, generator=generator, dtype=torch.float64) < share
    noise *= torch.randn(rows, dictionary.d_in, generator=generator, dtype=torch.float64)
    return weight @ dictionary.W_dec + dictionary.b_dec + noise


def pursue(dictionary, x, counts=None, *, mask_active=False):
    return PursuitEncoder(dictionary, mask_active=mask_active).encode(x, counts)


def assert_same_codes(codes, expected):
    torch.testing.assert_close(codes.to_dense(), expected, rtol=1e-9, atol=1e-10)
    assert torch.equal(codes.l0(), (expected > 1e-10).sum(1))
    assert bool((codes.value > 0).all())


@pytest.mark.parametrize("mask_active", [False, True])
@pytest.mark.parametrize(("d_in", "d_sae", "share"), [(16, 96, 0.05), (40, 130, 0.2), (8, 3, 0.5)])
def test_codes_are_those_of_the_dense_algorithm(d_in, d_sae, share, mask_active):
    dictionary = dictionary_of(d_in, d_sae)
    x = mixtures(dictionary, 300, share=share)
    counts = torch.randint(0, 13, (300,), generator=torch.Generator().manual_seed(3))
    codes = pursue(dictionary, x, counts, mask_active=mask_active)
    expected = dense_pursuit(
        dictionary.W_dec, x - dictionary.b_dec, counts, mask_active=mask_active
    )
    assert_same_codes(codes, expected)
    assert bool((codes.l0() <= counts).all())


def test_latents_of_unlike_norms_are_chosen_by_their_products_as_they_are():
    norms = torch.logspace(-2, 1, 60, dtype=torch.float64)
    dictionary = dictionary_of(24, 60, norms=norms)
    x = mixtures(dictionary, 200)
    counts = torch.full((200,), 6)
    expected = dense_pursuit(dictionary.W_dec, x - dictionary.b_dec, counts)
    assert_same_codes(pursue(dictionary, x, counts), expected)


def test_inner_products_that_are_not_stored_give_the_same_codes(monkeypatch):
    dictionary = dictionary_of(16, 96)
    x, counts = mixtures(dictionary, 100), torch.full((100,), 7)
    stored = pursue(dictionary, x, counts)
    monkeypatch.setattr(pursuit_state, "MOST_STORED", 0)
    # A few latents at a time in float64.
    for module in (pursuit_state, strongest_latent):
        monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    monkeypatch.setattr(pursuit_state, "BLOCK_ENTRIES", 16 * 7 * 5)
    encoder = PursuitEncoder(dictionary)
    assert encoder._inner_products._table is None
    torch.testing.assert_close(encoder.encode(x, counts).to_dense(), stored.to_dense())


def test_a_signal_of_one_latent_is_reproduced_and_nothing_is_nan():
    # The published code divides 0 by 0 from the step after an exact reconstruction on.
    dictionary = dictionary_of(32, 64)
    x = 3.0 * dictionary.W_dec[[5, 40]] + dictionary.b_dec
    codes = pursue(dictionary, x, torch.tensor([6, 3]))
    expected = torch.zeros(2, 64, dtype=torch.float64)
    expected[0, 5] = expected[1, 40] = 3.0
    torch.testing.assert_close(codes.to_dense(), expected, rtol=1e-9, atol=1e-6)
    assert bool(codes.to_dense().isfinite().all())


def test_rows_of_zeros_and_rows_that_no_latent_points_along_get_no_codes():
    dictionary = dictionary_of(3, 2, k=1)
    dictionary.W_dec.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    away = torch.tensor([[0.0, 0, 0], [-1, -1, 0], [0, 0, 4], [-1, 2, 0]], dtype=torch.float64)
    codes = pursue(dictionary, away + dictionary.b_dec, torch.full((4,), 2))
    expected = torch.zeros(4, 2, dtype=torch.float64)
    expected[3, 1] = 2.0
    torch.testing.assert_close(codes.to_dense(), expected, rtol=0, atol=1e-12)


def test_of_equal_products_the_first_latent_wins():
    dictionary = dictionary_of(12, 200)
    dictionary.W_dec[150] = dictionary.W_dec[7]
    dictionary.W_dec[80] = dictionary.W_dec[7]
    x = 2 * dictionary.W_dec[[7, 80, 150]] + dictionary.b_dec
    codes = pursue(dictionary, x, torch.ones(3, dtype=torch.int64))
    assert codes.latent.tolist() == [7, 7, 7]


@pytest.mark.parametrize("count", [20, 1000])
def test_as_many_latents_as_there_are_or_more(count):
    dictionary = dictionary_of(30, 20)
    x, counts = mixtures(dictionary, 50, share=0.5), torch.full((50,), count)
    expected = dense_pursuit(dictionary.W_dec, x - dictionary.b_dec, counts)
    assert_same_codes(pursue(dictionary, x, counts), expected)


def test_masking_active_latents_reaches_the_counts_and_plain_pursuit_may_stay_below():
    dictionary = dictionary_of(20, 200)
    x, counts = mixtures(dictionary, 200, share=0.3), torch.full((200,), 12)
    plain, masked = (pursue(dictionary, x, counts, mask_active=m) for m in (False, True))
    assert plain.l0().double().mean() < masked.l0().double().mean() <= 12
    assert fvu(x, dictionary.decode(masked)) < fvu(x, dictionary.decode(dictionary.encode(x)))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_codes_do_not_depend_on_batches_or_neighbours(batch_rows, seed):
    dictionary = dictionary_of(10, 70)
    x = mixtures(dictionary, 23, seed=seed)
    counts = torch.randint(0, 9, (23,), generator=torch.Generator().manual_seed(seed))
    whole = PursuitEncoder(dictionary).encode(x, counts)
    parts = PursuitEncoder(dictionary, batch_rows=batch_rows).encode(x, counts)
    torch.testing.assert_close(parts.to_dense(), whole.to_dense(), rtol=1e-10, atol=1e-12)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(seed))
    shuffled = pursue(dictionary, x[order], counts[order])
    torch.testing.assert_close(shuffled.to_dense(), whole.to_dense()[order])


def test_a_row_with_many_latents_bounds_the_batch(monkeypatch):
    from saelab.dictionary import pursuit

    monkeypatch.setattr(pursuit, "STATE_ENTRIES", 100)
    dictionary = dictionary_of(10, 70)
    x, counts = mixtures(dictionary, 30), torch.arange(30)
    codes = pursue(dictionary, x, counts)
    assert_same_codes(codes, dense_pursuit(dictionary.W_dec, x - dictionary.b_dec, counts))


def test_counts_default_to_the_encoders_own_l0():
    dictionary = dictionary_of(16, 96)
    x = mixtures(dictionary, 40)
    own = dictionary.encode(x).l0()
    assert torch.equal(pursue(dictionary, x).to_dense(), pursue(dictionary, x, own).to_dense())


def test_normalised_inputs_carry_their_scales_to_the_decoder():
    dictionary = dictionary_of(16, 96, input_normalisation="constant_norm_rescale")
    x, counts = mixtures(dictionary, 30), torch.full((30,), 5)
    codes = pursue(dictionary, x, counts)
    scale = x.norm(dim=1, keepdim=True) / 4
    expected = dense_pursuit(dictionary.W_dec, x / scale - dictionary.b_dec, counts)
    assert_same_codes(codes, expected)
    torch.testing.assert_close(
        dictionary.decode(codes), (expected @ dictionary.W_dec + dictionary.b_dec) * scale
    )


def test_no_rows_give_no_codes():
    dictionary = dictionary_of(4, 8)
    codes = pursue(dictionary, torch.zeros(0, 4, dtype=torch.float64))
    assert codes.n_rows == 0 and codes.latent.numel() == 0


def test_counts_that_are_negative_are_refused():
    dictionary = dictionary_of(4, 8)
    with pytest.raises(ConfigError, match=r"at least 0, is needed for each of 2 rows.*smallest -2"):
        pursue(dictionary, torch.zeros(2, 4, dtype=torch.float64), torch.tensor([1, -2]))
    with pytest.raises(ConfigError, match="batch_rows: 0 is below 1"):
        PursuitEncoder(dictionary, batch_rows=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300), st.floats(0.05, 1.0))
def test_the_screen_never_misses_the_largest_product(seed, d_sae, spread):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 24, generator=generator, dtype=torch.float64)
    # Latents close to one another, so that rounding alone would pick the wrong one.
    latents = base + spread * torch.randn(d_sae, 24, generator=generator, dtype=torch.float64)
    rows = torch.randn(16, 24, generator=generator, dtype=torch.float64)
    searched = torch.arange(16) != 3
    found = LatentScreen(latents)(rows.float(), rows.norm(dim=1).float() * 1e-6, searched)
    product = rows @ latents.T
    for row in range(16):
        candidates = found.latent[found.row == row].tolist()
        if row == 3:
            assert not candidates and not found.unclear[row]
        elif found.unclear[row]:
            assert not candidates
        else:
            assert int(product[row].argmax()) in candidates
            assert max(candidates) < d_sae
