"""Cross-layer encoding and decoding on pairs, against dense block matrices in float64."""

import pytest
import torch

from saelab.sparse import (
    LayerPairs,
    LayerPreActivations,
    SparseCodes,
    decode_layers,
    decoder_pointer,
    encode_layers,
    select_above,
    select_batch_top,
    select_top_k,
    select_top_k_of_each_layer,
)


def drawn(layers, size, d, rows, seed=0):
    """Inputs, encoder weights and biases, and decoder rows by latent and target."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n_decoder_rows = size * layers * (layers + 1) // 2
    tensors = draw(rows, layers * d), draw(layers * size, d).T, draw(layers * size)
    return [each.requires_grad_() for each in (*tensors, draw(n_decoder_rows, d))]


def block_matrices(layers, W_enc, decoder):
    """The encoder block by block, and the decoder as a block triangle, written down in loops."""
    d, d_sae = W_enc.shape
    size = d_sae // layers
    encoder = torch.block_diag(*W_enc.split(size, dim=1))
    rows, start = [], 0
    for latent in range(d_sae):
        source = latent // size
        written = decoder[start : start + layers - source].flatten()
        rows.append(torch.cat([written.new_zeros(source * d), written]))
        start += layers - source
    assert start == len(decoder)
    return encoder, torch.stack(rows)


def pre_activations(leaves, layers, dtype=None):
    x, W_enc, b_enc, _ = (each.detach() for each in leaves)
    size = W_enc.shape[1] // layers
    return LayerPreActivations(x, W_enc, b_enc, dtype, sizes=(size,) * layers)


def dense_choice(leaves, layers, how, k):
    """Pre-activations by block matrices, and which of them each selection keeps."""
    x, W_enc, b_enc, decoder = leaves
    encoder, _ = block_matrices(layers, W_enc, decoder)
    pre = x @ encoder + b_enc
    if how == "layers":
        by_layer = pre.unflatten(1, (layers, -1))
        chosen = by_layer.topk(k, dim=2).indices
        return pre, torch.zeros_like(by_layer).scatter(2, chosen, 1.0).flatten(1).bool()
    if how == "rows":
        return pre, torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0).bool()
    if how == "batch":
        flat = pre.flatten()
        kept = torch.zeros_like(flat).index_fill(0, flat.topk(k * len(x)).indices, 1.0).bool()
        return pre, kept.view_as(pre) & (pre > 0)
    return pre, pre > 0.5


def selected_by(pre, how, k):
    if how == "layers":
        return select_top_k_of_each_layer(pre, k)
    if how == "rows":
        return select_top_k(pre, k)
    if how == "batch":
        return select_batch_top(pre, k * pre.shape[0]).codes
    return select_above(pre, torch.tensor(0.5, dtype=torch.float64))


@pytest.mark.parametrize("how", ["layers", "rows", "batch", "above"])
@pytest.mark.parametrize(
    ("layers", "size", "d", "rows", "k"),
    [(3, 16, 5, 7, 2), (4, 6, 3, 600, 1), (1, 9, 4, 5, 3), (12, 32, 4, 20, 3), (2, 4, 3, 1, 1)],
)
def test_values_and_gradients_equal_dense_block_matrices(how, layers, size, d, rows, k):
    leaves = drawn(layers, size, d, rows)
    pre, kept = dense_choice(leaves, layers, how, k)
    codes = torch.where(kept, pre, 0.0).relu()
    _, W_dec = block_matrices(layers, leaves[1], leaves[3])
    expected_output = codes @ W_dec
    loss = expected_output.pow(3).sum() + codes.square().sum()
    expected = torch.autograd.grad(loss, leaves)

    selected = selected_by(pre_activations(leaves, layers), how, k)
    assert torch.equal(selected.to_dense() != 0, kept)
    pairs = LayerPairs.of(selected, layers)
    value = encode_layers(*leaves[:3], pairs).relu()
    output = decode_layers(value, leaves[3], pairs)
    loss = output.pow(3).sum() + value.square().sum()
    gradients = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(selected.with_value(value).to_dense(), codes)
    torch.testing.assert_close(output, expected_output)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


def test_ties_and_a_layer_without_pairs():
    """Of equal pre-activations any are kept; what they write is that of the dense matrices."""
    layers, size, d = 3, 8, 2
    leaves = drawn(layers, size, d, 6)
    x, W_enc, _, decoder = (each.detach() for each in leaves)
    W_enc = W_enc[:, :1].expand(-1, layers * size)
    b_enc = torch.zeros(layers * size, dtype=torch.float64)
    b_enc[size : 2 * size] = -1e6
    pre = LayerPreActivations(x, W_enc, b_enc, sizes=(size,) * layers)
    selected = select_top_k_of_each_layer(pre, 2)
    assert torch.equal(selected.to_dense().unflatten(1, (layers, size)).count_nonzero(2), _twos(6))
    selected = selected.keep(selected.value > 0)
    assert not ((selected.latent >= size) & (selected.latent < 2 * size)).any()
    output = decode_layers(selected.value, decoder, LayerPairs.of(selected, layers))
    _, W_dec = block_matrices(layers, W_enc, decoder)
    torch.testing.assert_close(output, selected.to_dense() @ W_dec)


def _twos(rows):
    return torch.full((rows, 3), 2)


def test_some_latents_alone_of_layers_of_any_number():
    """What the auxiliary loss searches: dead latents of some sources, none of others."""
    layers, size = 4, 6
    leaves = drawn(layers, size, 3, 9)
    pre = pre_activations(leaves, layers)
    latents = torch.tensor([1, 2, 13, 17, 23])
    alone = pre.of_latents(latents)
    assert alone.sizes == (2, 0, 2, 1)
    encoder, _ = block_matrices(layers, leaves[1], leaves[3])
    dense = (leaves[0] @ encoder + leaves[2]).detach()[:, latents]
    codes = select_top_k(alone, 3)
    rows = torch.arange(9)[:, None]
    expected = dense.topk(3).indices.sort().values
    assert torch.equal(codes.latent.view(9, 3), expected)
    torch.testing.assert_close(codes.value.view(9, 3), dense[rows, expected])


def test_a_bfloat16_product_keeps_exact_values():
    layers, size, d = 3, 64, 32
    leaves = [each.detach().float() for each in drawn(layers, size, d, 50)]
    exact = pre_activations([each.double() for each in leaves], layers)
    dense = exact.inputs @ torch.block_diag(*exact.W_enc.split(size, dim=1)) + exact.b_enc
    pre = pre_activations(leaves, layers, torch.bfloat16)
    for codes in (select_top_k_of_each_layer(pre, 4), select_top_k(pre, 4)):
        wanted = dense[codes.pair_rows(), codes.latent]
        torch.testing.assert_close(codes.value.double(), wanted, rtol=1e-5, atol=1e-5)


def test_decoder_rows_lie_by_source_latent_and_target():
    assert decoder_pointer(6, 3).tolist() == [0, 3, 6, 8, 10, 11, 12]
    codes = SparseCodes.from_dense(torch.tensor([[1.0, 0, 0, 2.0, 0, 3.0]]))
    pairs = LayerPairs.of(codes, 3)
    assert pairs.written.row_pointer.tolist() == [0, 1, 3, 6]
    assert pairs.written.latent.tolist() == [0, 1, 8, 2, 9, 11]
    assert pairs.pair.tolist() == [0, 0, 1, 0, 1, 2]
