"""The contract of the kernels: every backend of the table against dense float64."""

import re
from pathlib import Path

import pytest
import torch

import saelab.sparse
from saelab.sparse import PreActivations, SparseCodes, TransposedPairs, select_above
from saelab.sparse.backends import BACKENDS, backend_of

AVAILABLE = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name != "cpu" and not torch.cuda.is_available(), reason="needs a CUDA device"
        ),
    )
    for name in BACKENDS
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}


@pytest.fixture(params=AVAILABLE)
def backend(request):
    return BACKENDS[request.param], torch.device("cpu" if request.param == "cpu" else "cuda")


def dense_codes(rows=40, d_sae=48):
    """Codes with empty rows, dead latents, a full row and zeros that are listed."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(rows, d_sae, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, d_sae, generator=generator) < 0.1
    mask[[0, 7, rows - 1]] = False
    mask[3] = True
    mask[:, [5, d_sae - 1]] = False
    return SparseCodes.from_mask(drawn.round(decimals=1), mask), torch.where(mask, drawn, 0.0)


def on(device, *tensors):
    return [tensor.to(device) for tensor in tensors]


def relative_error(result, expected):
    scale = expected.abs().max().clamp_min(1e-30)
    return float((result.double().cpu() - expected).abs().max() / scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_sums_decode_and_give_the_weight_gradients(backend, dtype):
    kernels, device = backend
    codes, _ = dense_codes()
    dense = codes.to_dense()
    W = torch.randn(codes.d_sae, 12, dtype=torch.float64)
    D = torch.randn(codes.n_rows, 12, dtype=torch.float64)
    pointer, latent, value = on(device, codes.row_pointer, codes.latent, codes.value.to(dtype))
    decoded = kernels.weighted_sums(pointer, latent, value, W.to(device, dtype))
    assert decoded.dtype == dtype and relative_error(decoded, dense @ W) < TOLERANCE[dtype]
    pairs = TransposedPairs.of(codes)
    pointer, row, weight = on(device, pairs.latent_pointer, pairs.row, codes.value[pairs.order])
    gradient = kernels.weighted_sums(pointer, row, weight.to(dtype), D.to(device, dtype))
    assert relative_error(gradient, dense.T @ D) < TOLERANCE[dtype]
    assert not gradient[[5, codes.d_sae - 1]].any() and not decoded[[0, 7, -1]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_sampled_product_is_that_of_the_listed_pairs(backend, dtype, transposed):
    kernels, device = backend
    codes, _ = dense_codes()
    D = torch.randn(codes.n_rows, 12, dtype=torch.float64)
    L = torch.randn(12, codes.d_sae, dtype=torch.float64)
    latents = L.to(device, dtype).T if transposed else L.T.contiguous().to(device, dtype)
    pointer, latent = on(device, codes.row_pointer, codes.latent)
    products = kernels.sampled_product(pointer, latent, D.to(device, dtype), latents)
    expected = (D @ L)[codes.pair_rows(), codes.latent]
    assert relative_error(products, expected) < TOLERANCE[dtype]
    none = torch.zeros(codes.n_rows + 1, dtype=torch.int64, device=device)
    empty = kernels.sampled_product(none, latent[:0], D.to(device, dtype), latents)
    assert empty.shape == (0,) and empty.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width, k", [(512, 4), (512, 60), (96, 1), (7, 3), (8, 8), (8, 20)])
@pytest.mark.parametrize("ties", [False, True])
def test_top_k_holds_the_largest_once_each(backend, dtype, width, k, ties):
    kernels, device = backend
    scores = torch.randn(33, width, dtype=torch.float64).to(dtype)
    scores = scores.round() if ties else scores
    values, indices = kernels.top_k(scores.to(device), k)
    expected = scores.double().topk(min(k, width), dim=1).values
    assert torch.equal(values.double().cpu().sort(descending=True).values, expected)
    assert torch.equal(scores.gather(1, indices.cpu()), values.cpu())
    assert all(len(set(row)) == min(k, width) for row in indices.tolist())


def test_set_entries_come_by_row(backend):
    kernels, device = backend
    for mask in (dense_codes()[1] != 0, torch.zeros(4, 9, dtype=torch.bool), torch.ones(2, 3) > 0):
        row, column = kernels.set_entries(mask.to(device))
        expected_row, expected_column = mask.nonzero(as_tuple=True)
        assert torch.equal(row.cpu(), expected_row)
        assert torch.equal(column.cpu().sort(stable=True).values, expected_column.sort().values)
        assert torch.equal(mask[row.cpu(), column.cpu()], torch.ones(len(row), dtype=torch.bool))


@pytest.mark.parametrize("high", [3, 1 << 20, 1 << 45])
def test_the_order_is_that_of_a_stable_sort(backend, high):
    kernels, device = backend
    keys = torch.randint(0, high, (5000,))
    expected = keys.sort(stable=True).indices
    assert torch.equal(kernels.stable_order(keys.to(device)).cpu(), expected)
    assert kernels.stable_order(keys[:0].to(device)).shape == (0,)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_all_pairs_above_a_floor_are_selected(backend, dtype):
    kernels, device = backend
    x, W_enc = torch.randn(64, 16), torch.randn(16, 96)
    assert backend_of(x.to(device)) is kernels
    *encoder, floor = on(device, x, W_enc, torch.zeros(96), torch.tensor(2.0))
    found = select_above(PreActivations(*encoder, dtype), floor)
    expected = x.double() @ W_enc.double()
    dense = found.to_dense().cpu().double()
    chosen = dense != 0
    slack = 0.0 if dtype is None else 0.1
    assert not (chosen & (expected < 2.0 - slack - 1e-5)).any()
    assert not (~chosen & (expected > 2.0 + slack + 1e-5)).any()
    torch.testing.assert_close(dense[chosen], expected[chosen], rtol=1e-5, atol=1e-5)


def test_where_a_tensor_lies_is_asked_in_one_place():
    sparse = Path(saelab.sparse.__file__).parent
    training = sparse.parents[1] / "training"
    asking = [
        path.relative_to(sparse.parents[1]).as_posix()
        for folder in (sparse, training)
        for path in folder.rglob("*.py")
        if re.search(r"device\.type|\.is_cuda", path.read_text(encoding="utf-8"))
    ]
    assert asking == ["saelab/sparse/backends.py"]
