"""Every gradient of the sparse kernels against dense float64 autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import ActivationError
from saelab.sparse import PreActivations, SparseCodes, autoencode, select_top_k, top_k
from saelab.sparse.kernels import TransposedPairs, combine_latents, combine_rows, pair_products
from saelab.stats.metrics import SparsityStatistics, mean_l0


def weights(d_in, d_sae, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return draw(d_sae, d_in).T, draw(d_sae), draw(d_sae, d_in), draw(d_in)


def dense_autoencode(x, W_enc, b_enc, W_dec, b_dec, k):
    pre = (x - b_dec) @ W_enc + b_enc
    chosen = pre.topk(min(k, pre.shape[1]), dim=1)
    codes = torch.zeros_like(pre).scatter(1, chosen.indices, chosen.values.relu())
    return codes, codes @ W_dec + b_dec


def losses_of(codes, reconstruction):
    return reconstruction.pow(3).sum() + codes.pow(2).sum() + codes.sum()


@pytest.mark.parametrize(
    ("rows", "d_in", "d_sae", "k"),
    [(7, 5, 40, 4), (1, 3, 8, 8), (4, 3, 6, 20), (600, 8, 512, 3), (3, 2, 5, 1), (0, 3, 8, 2)],
)
def test_every_gradient_equals_dense_autograd(rows, d_in, d_sae, k):
    x = torch.randn(rows, d_in, dtype=torch.float64)
    leaves = [t.detach().requires_grad_() for t in (x, *weights(d_in, d_sae))]
    codes, reconstruction = dense_autoencode(*leaves, k)
    expected = torch.autograd.grad(losses_of(codes, reconstruction), leaves)

    W_enc, b_enc, b_dec = leaves[1], leaves[2], leaves[4]
    selected = select_top_k(PreActivations((leaves[0] - b_dec).detach(), W_enc, b_enc), k)
    sparse_codes, sparse_reconstruction = autoencode(*leaves, selected)
    found = torch.autograd.grad(losses_of(sparse_codes.value, sparse_reconstruction), leaves)

    torch.testing.assert_close(sparse_codes.to_dense(), codes)
    torch.testing.assert_close(sparse_reconstruction, reconstruction)
    for name, mine, theirs in zip(
        ("x", "W_enc", "b_enc", "W_dec", "b_dec"), found, expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_gradients_without_b_dec_in_the_output_and_with_only_one_output_used():
    x = torch.randn(9, 4, dtype=torch.float64)
    leaves = [t.detach().requires_grad_() for t in (x, *weights(4, 12))]
    selected = select_top_k(
        PreActivations((leaves[0] - leaves[4]).detach(), leaves[1], leaves[2]), 3
    )
    codes, reconstruction = dense_autoencode(*leaves, 3)
    for use in ("values", "reconstruction"):
        sparse, with_bias = autoencode(*leaves, selected)
        without = with_bias - leaves[4]
        if use == "values":
            expected = torch.autograd.grad(
                codes.sum(), leaves, retain_graph=True, allow_unused=True
            )
            found = torch.autograd.grad(sparse.value.sum(), leaves, allow_unused=True)
        else:
            dense = reconstruction - leaves[4]
            expected = torch.autograd.grad(dense.square().sum(), leaves, retain_graph=True)
            found = torch.autograd.grad(without.square().sum(), leaves)
        for leaf, mine, theirs in zip(leaves, found, expected, strict=True):
            mine, theirs = (torch.zeros_like(leaf) if g is None else g for g in (mine, theirs))
            torch.testing.assert_close(mine, theirs)


def test_a_row_of_negative_pre_activations_is_listed_as_zeros_and_gets_no_gradient():
    W_enc, b_enc, W_dec, b_dec = weights(3, 6)
    leaves = [t.detach().requires_grad_() for t in (W_enc, b_enc - 1e3, W_dec, b_dec)]
    x = torch.randn(4, 3, dtype=torch.float64)
    selected = select_top_k(PreActivations(x - b_dec, leaves[0].detach(), leaves[1].detach()), 2)
    codes, reconstruction = autoencode(x, *leaves, selected)
    assert codes.value.shape == (8,) and not codes.value.any()
    assert not codes.fired().any() and not codes.l0().any()
    assert codes.without_zeros().latent.shape == (0,)
    gradients = torch.autograd.grad(reconstruction.square().sum(), leaves)
    assert not gradients[0].any() and not gradients[1].any() and not gradients[2].any()


def test_bfloat16_product_chooses_in_bfloat16_and_keeps_exact_values():
    W_enc, b_enc, _, _ = weights(64, 1024, dtype=torch.float32)
    x = torch.randn(300, 64)
    exact = x.double() @ W_enc.double() + b_enc.double()
    selected = select_top_k(PreActivations(x, W_enc, b_enc, torch.bfloat16), 16)
    rows = selected.pair_rows()
    torch.testing.assert_close(
        selected.value.double(), exact[rows, selected.latent], rtol=1e-5, atol=1e-4
    )
    # What bfloat16 chose instead of the true top 16 is nearly as large as what it passed over.
    true_sum = exact.topk(16, dim=1).values.sum(1)
    chosen_sum = torch.zeros(300, dtype=torch.float64).index_add_(0, rows, selected.value.double())
    assert ((true_sum - chosen_sum) / true_sum).max() < 0.01


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.sampled_from([1, 7, 64, 256, 1024, 1536]),
    k=st.integers(1, 40),
    ties=st.booleans(),
    seed=st.integers(0, 999),
)
def test_top_k_equals_torch_topk(rows, width, k, ties, seed):
    scores = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    if ties:
        scores = scores.round()
    values, places = top_k(scores, k)
    expected = scores.topk(min(k, width), dim=1).values
    assert torch.equal(values.sort(dim=1, descending=True).values, expected)
    assert torch.equal(scores.gather(1, places), values)
    for row in places.tolist():
        assert len(set(row)) == len(row)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 12), d_sae=st.integers(1, 30), seed=st.integers(0, 999))
def test_sparse_codes_round_trip_and_kernels(rows, d_sae, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, d_sae, generator=generator, dtype=torch.float64).relu()
    codes = SparseCodes.from_dense(dense)
    assert torch.equal(codes.to_dense(), dense)
    assert torch.equal(codes.l0(), (dense > 0).sum(1))
    assert torch.equal(codes.fired(), (dense > 0).any(0))
    latents = torch.randn(d_sae, 5, generator=generator, dtype=torch.float64)
    left = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(combine_latents(codes, latents), dense @ latents)
    torch.testing.assert_close(
        pair_products(codes, left, latents),
        (left @ latents.T)[codes.pair_rows(), codes.latent],
    )
    torch.testing.assert_close(
        combine_rows(TransposedPairs.of(codes), codes.value, left), dense.T @ left
    )


def test_chunks_cover_the_product_and_reuse_one_workspace():
    W_enc, b_enc, _, _ = weights(6, 20)
    x = torch.randn(1300, 6, dtype=torch.float64)
    expected = x @ W_enc + b_enc
    addresses = set()
    covered = []
    for part, chunk in PreActivations(x, W_enc, b_enc).chunks():
        torch.testing.assert_close(chunk, expected[part])
        addresses.add(chunk.data_ptr())
        covered += list(range(part.start, part.stop))
    assert covered == list(range(1300)) and len(addresses) == 1


def test_selection_of_a_row_does_not_depend_on_the_rows_beside_it():
    W_enc, b_enc, _, _ = weights(16, 2048)
    x = torch.randn(700, 16, dtype=torch.float64)
    whole = select_top_k(PreActivations(x, W_enc, b_enc), 8).to_dense()
    parts = [select_top_k(PreActivations(part, W_enc, b_enc), 8).to_dense() for part in x.split(33)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_only_positive_codes_count():
    dense = torch.tensor([[1.0, -2.0, 0.0], [0.0, -1.0, 3.0], [0.0, -4.0, 0.0]])
    codes = SparseCodes.from_dense(dense)
    assert codes.l0().tolist() == [1, 1, 0]
    assert codes.fired().tolist() == [True, False, True]
    assert torch.equal(codes.without_zeros().to_dense(), dense)
    assert mean_l0(codes) == pytest.approx(2 / 3)
    statistics = SparsityStatistics(3)
    statistics.update(codes)
    assert statistics.values()["l0_mean"] == pytest.approx(mean_l0(codes))
    with pytest.raises(ActivationError, match="there are none"):
        mean_l0(SparseCodes.from_dense(dense[:0]))


def test_without_zeros_keeps_rows_apart():
    codes = SparseCodes.from_fixed_k(
        torch.tensor([[0, 1], [2, 3], [4, 0]]),
        torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]),
        5,
    )
    pruned = codes.without_zeros()
    assert pruned.row_pointer.tolist() == [0, 1, 1, 2]
    assert torch.equal(pruned.to_dense(), codes.to_dense())
