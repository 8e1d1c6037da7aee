"""Bits per token: known entropies, float64 oracles in numpy, and the suite on the tiny model."""

import numpy as np
import pyarrow.parquet
import pytest
import torch

from saelab.dictionary import Dictionary, load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.dictionary.site_rows import held_out_rows
from saelab.evals.description_length.baselines import BinnedChannels
from saelab.evals.description_length.bits import BinCounts, choose_bits, firing_bits, value_at
from saelab.evals.description_length.measure import CodeBins
from saelab.evals.description_length.suite import (
    DescriptionLengthConfig,
    run_description_length,
)

SMALL = DescriptionLengthConfig(n_tokens=32 * 32, device="cpu", tolerance=0.05, controls=())


def entropy_of(indices):
    """Bits of a value's bin, with the correction for few values."""
    _, counts = np.unique(indices, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum() + (len(p) - 1) / (2 * len(indices) * np.log(2)))


def coin(p):
    inside = p[(p > 0) & (p < 1)]
    return float(-(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside)).sum())


def test_counts_streamed_and_made_coarser_give_the_entropies_of_their_values():
    generator = np.random.default_rng(0)
    source, index = generator.integers(0, 5, 4000), generator.integers(-30, 200, 4000) ** 2 // 100
    index[source == 2] -= 17
    counts = BinCounts(6)
    for part in np.array_split(np.arange(4000), 7):
        counts.add(torch.tensor(source[part]), torch.tensor(index[part]))
    for width in (1, 2, 4):
        expected = [entropy_of(index[source == s] // width) for s in range(5)] + [0.0]
        np.testing.assert_allclose(counts.entropies(), expected, rtol=1e-12)
        counts = counts.coarser()


def test_sets_of_equal_probability_need_the_logarithm_of_their_number():
    histogram = torch.tensor([0, 0, 30, 10])
    expected = 0.75 * np.log2(45) + 0.25 * np.log2(120) + coin(np.array([0.25]))
    assert choose_bits(histogram, 10) == pytest.approx(expected, rel=1e-12)
    p = torch.tensor([0.0, 0.5, 0.25, 1.0]).double()
    assert float(firing_bits(p).sum()) == pytest.approx(coin(p.numpy()), rel=1e-12)


def test_between_two_widths_bits_are_linear_in_the_logarithm_of_what_bins_add():
    errors, bits = [0.1 + 0.001 * 4**level for level in range(4)], [9.0, 8.0, 7.0, 6.0]
    assert value_at(0.102, errors, bits, 0.1) == pytest.approx(8.5)
    assert value_at(0.1005, errors, bits, 0.1) is None
    assert value_at(1.0, errors, bits, 0.1) == 6.0


def test_gaussian_channels_need_their_differential_entropy():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([4.0, 2.0, 1.0, 1.0])
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    rows = torch.randn(60_000, 4, generator=generator) * spread @ turn
    channels, fvu = BinnedChannels.of(rows), 0.003
    width = np.sqrt(12 * fvu * float(spread.square().sum()) / 4)
    gaussian = 0.5 * np.log2(2 * np.pi * np.e) - np.log2(width)
    expected = float((spread.log2() + gaussian).sum())
    assert channels.principal().bits(fvu) == pytest.approx(expected, abs=0.05)
    # Channels that are not independent take more, by what their variances are spread more evenly.
    variance = torch.diag(turn.T @ torch.diag(spread.square()) @ turn)
    apart = float(0.5 * variance.log2().sum() - spread.log2().sum())
    assert apart > 0.5
    assert channels.bits(fvu) == pytest.approx(expected + apart, abs=0.05)
    assert channels.bits(1.2) == 0 and channels.bits(0.0) is None


def identity(d):
    return Dictionary(
        "relu", W_enc=torch.eye(d), W_dec=torch.eye(d), b_dec=torch.zeros(d), b_enc=torch.zeros(d)
    )


def test_planted_strengths_need_the_logarithm_of_their_number(save_trained):
    """Latent m fires with a known probability, with one of 2 ** m strengths."""
    generator = np.random.default_rng(0)
    density, n = np.array([0.5, 0.25, 0.125, 0.0]), 20_000
    fires = generator.random((n, 4)) < density
    strengths = 1 + generator.integers(0, 2 ** np.arange(4), (n, 4))
    rows = torch.tensor(fires * strengths, dtype=torch.float32)
    sums = CodeBins(load_dictionary(save_trained(identity(4), "planted")), 0.01)
    for part in rows.split(3000):
        sums.update(part, part)
    assert sums.error == 0
    for bits in sums.entropies():
        np.testing.assert_allclose(bits, [0, 1, 2, 0], atol=0.01)
    which = firing_bits(sums.sparsity.density())
    np.testing.assert_allclose(which, [coin(density[m : m + 1]) for m in range(4)], atol=0.01)


def test_the_suite_equals_numpy_in_float64(save_trained, topk_dictionary, tiny_model):
    folders = [save_trained(topk_dictionary(seed), f"sae-{seed}") for seed in range(2)]
    results = run_description_length(folders, SMALL)
    saved = load_dictionary(folders[0])
    spec = data_spec_of(saved, SMALL)
    x = torch.cat([rows.inputs for rows in held_out_rows(tiny_model, spec, SMALL.n_tokens, 4)])
    codes = saved.dictionary.encode_dense(x).numpy().astype(np.float64)
    decoder, x = saved.dictionary.W_dec.numpy().astype(np.float64), x.numpy().astype(np.float64)
    bias = saved.dictionary.b_dec.numpy().astype(np.float64)
    values = {metric.name: metric.value for metric in results[0].metrics}
    variance = np.square(x - x.mean(0)).sum()
    fvu = np.square(x - codes @ decoder - bias).sum() / variance
    density = (codes > 0).mean(0)
    assert values["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert values["bits_which"] == pytest.approx(coin(density), rel=1e-9)
    norms = np.linalg.norm(decoder, axis=1)
    (chart,) = results[0].charts
    line = chart.series[0]
    width = 2.0 ** np.round(np.log2(values["bin_width"]))
    errors, bits = [], []
    for factor in (0.5, 1, 2):
        index = np.floor(codes * norms / (factor * width))
        middles = np.where(codes > 0, (index + 0.5) * factor * width / norms, 0)
        errors.append(np.square(x - middles @ decoder - bias).sum() / variance)
        strength = sum(
            density[m] * entropy_of(index[codes[:, m] > 0, m]) for m in range(48) if density[m]
        )
        bits.append(coin(density) + strength)
    nearest = [int(np.abs(np.array(line.x) - error).argmin()) for error in errors]
    np.testing.assert_allclose([line.x[i] for i in nearest], errors, rtol=1e-4)
    np.testing.assert_allclose([line.y[i] for i in nearest], bits, rtol=1e-4)
    assert values["fvu_binned"] == pytest.approx(1.05 * fvu, rel=1e-5)
    assert min(bits) < values["bits_per_token"] < max(bits)
    assert values["bits_pca"] <= values["bits_channels"]
    table = pyarrow.parquet.read_table(folders[0] / "evals" / "description_length_latents.parquet")
    np.testing.assert_allclose(table["density"].to_numpy(), density)
