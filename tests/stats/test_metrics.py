"""Metrics against dense float64 brute force, and their independence of how rows are batched."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import ActivationError
from saelab.sparse import SparseCodes
from saelab.stats.metric_definitions import METRICS, define
from saelab.stats.metrics import (
    ReconstructionStatistics,
    SparsityStatistics,
    density_histogram,
    fvu,
    kl_divergence,
    loss_recovered,
)
from saelab.stats.moments import Moments

D_IN, D_SAE = 6, 20


def random_rows(n_rows: int, seed: int, mean: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = mean + torch.randn(n_rows, D_IN, generator=generator)
    hat = x + 0.3 * torch.randn(n_rows, D_IN, generator=generator) - 0.1
    return x, hat


def random_codes(n_rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n_rows, D_SAE, generator=generator)
    kept = torch.rand(n_rows, D_SAE, generator=generator) < torch.linspace(0, 0.6, D_SAE)
    return dense * kept


def brute_force(x: torch.Tensor, hat: torch.Tensor) -> dict[str, float]:
    """Every reconstruction metric written down plainly, in float64 over all rows at once."""
    x, hat = x.double(), hat.double()
    error = (x - hat).square().sum(1)
    deviation = (x - x.mean(0)).square().sum(1)
    norm, norm_hat, product = x.norm(dim=1), hat.norm(dim=1), (x * hat).sum(1)
    return {
        "n_rows": len(x),
        "fvu": (error.sum() / deviation.sum()).item(),
        "explained_variance": (1 - error.sum() / deviation.sum()).item(),
        "mean_squared_error": error.mean().item(),
        "cosine_similarity": (product / norm / norm_hat).mean().item(),
        "l2_ratio": (norm_hat / norm).mean().item(),
        "l2_ratio_of_means": (norm_hat.mean() / norm.mean()).item(),
        "relative_reconstruction_bias": (norm_hat.square().mean() / product.mean()).item(),
    }


def test_reconstruction_metrics_equal_dense_float64():
    x, hat = random_rows(200, seed=0)
    statistics = ReconstructionStatistics(D_IN)
    statistics.update(x, hat)
    assert statistics.values() == pytest.approx(brute_force(x, hat), rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(0, 90), max_size=8),
    mean=st.sampled_from([0.0, 3.0, 1e4]),
)
def test_statistics_do_not_depend_on_the_batch_size(seed, cuts, mean):
    x, hat = random_rows(90, seed, mean)
    dense = random_codes(90, seed)
    group = torch.arange(90) % 4
    whole, parts = ReconstructionStatistics(D_IN, 4), ReconstructionStatistics(D_IN, 4)
    whole_codes, part_codes = SparsityStatistics(D_SAE), SparsityStatistics(D_SAE)
    whole.update(x, hat, group)
    whole_codes.update(SparseCodes.from_dense(dense))
    bounds = [0, *sorted(cuts), 90]
    for start, stop in pairwise(bounds):
        parts.update(x[start:stop], hat[start:stop], group[start:stop])
        part_codes.update(SparseCodes.from_dense(dense[start:stop]))
    assert parts.values() == pytest.approx(whole.values(), rel=1e-11)
    assert parts.fvu_by_group() == pytest.approx(whole.fvu_by_group(), rel=1e-11)
    assert parts.error_by_norm()["rows"] == whole.error_by_norm()["rows"]
    assert part_codes.values() == pytest.approx(whole_codes.values(), rel=1e-12)
    assert torch.equal(part_codes.count, whole_codes.count)


def test_streamed_fvu_is_stable_where_the_mean_is_large():
    """A mean of 1e6 and a deviation of 1: naive sums of squares lose the digits of the variance."""
    x, _ = random_rows(4000, seed=1, mean=1e6)
    x = x.double()
    hat = x + 0.5
    statistics = ReconstructionStatistics(D_IN)
    for part, part_hat in zip(x.split(7), hat.split(7), strict=True):
        statistics.update(part, part_hat)
    two_pass = brute_force(x, hat)
    assert statistics.values()["fvu"] == pytest.approx(two_pass["fvu"], rel=1e-9)


def test_explained_variance_is_against_the_per_dimension_mean():
    """Data of mean 3: a formula that pools squared means over dimensions reports 0.99 here."""
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(20_000, 16, generator=generator)
    hat = x + 0.3 * torch.randn(20_000, 16, generator=generator)
    statistics = ReconstructionStatistics(16)
    statistics.update(x, hat)
    assert statistics.values()["explained_variance"] == pytest.approx(0.91, abs=2e-3)
    mean_only = ReconstructionStatistics(16)
    mean_only.update(x, x.mean(0).expand_as(x))
    assert mean_only.values()["fvu"] == pytest.approx(1, rel=1e-6)


def test_rows_count_alike_in_two_and_three_dimensions():
    x, hat = random_rows(60, seed=2)
    flat, deep = ReconstructionStatistics(D_IN), ReconstructionStatistics(D_IN)
    flat.update(x, hat)
    deep.update(x.reshape(5, 12, D_IN), hat.reshape(5, 12, D_IN))
    assert deep.values() == flat.values()
    assert fvu(x.reshape(5, 12, D_IN), hat.reshape(5, 12, D_IN)) == flat.values()["fvu"]


def test_position_curve_is_about_the_pooled_mean_and_averages_to_the_pooled_fvu():
    x, hat = random_rows(120, seed=3)
    group = torch.arange(120) % 3
    x[group == 1] += 5
    statistics = ReconstructionStatistics(D_IN, n_groups=4)
    statistics.update(x, hat, group)
    centred = (x.double() - x.double().mean(0)).square().sum(1)
    error = (x.double() - hat.double()).square().sum(1)
    expected = [(error[group == g].sum() / centred[group == g].sum()).item() for g in range(3)]
    assert statistics.fvu_by_group()[:3] == pytest.approx(expected, rel=1e-11)
    assert statistics.fvu_by_group()[3] is None
    assert error.sum() / centred.sum() == pytest.approx(statistics.values()["fvu"], rel=1e-12)


def test_moments_without_groups_are_mean_and_variance():
    x, _ = random_rows(50, seed=4)
    moments = Moments(D_IN)
    for part in x.split(8):
        moments.update(part)
    torch.testing.assert_close(moments.mean(), x.double().mean(0), rtol=1e-13, atol=0)
    expected = (x.double() - x.double().mean(0)).square().sum()
    assert moments.deviation().sum().item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_zero_vector_counts_as_stated():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    hat = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    statistics = ReconstructionStatistics(2)
    statistics.update(x, hat)
    values = statistics.values()
    assert values["cosine_similarity"] == pytest.approx(1 / 3)
    assert values["l2_ratio"] == pytest.approx(0.5)
    assert values["l2_ratio_of_means"] == pytest.approx(1)


def test_sparsity_metrics_equal_dense_counting():
    dense = random_codes(300, seed=5)
    statistics = SparsityStatistics(D_SAE)
    statistics.update(SparseCodes.from_dense(dense))
    active = dense > 0
    l0 = active.sum(1).double()
    density = active.double().mean(0)
    values = statistics.values()
    assert values["l0_mean"] == pytest.approx(l0.mean().item(), rel=1e-12)
    assert values["l0_std"] == pytest.approx(l0.std(correction=0).item(), rel=1e-12)
    ordered = l0.sort().values
    for name, quantile in {"l0_q05": 0.05, "l0_q50": 0.5, "l0_q95": 0.95}.items():
        assert values[name] == ordered[math.ceil(quantile * 300) - 1]
    assert values["dead_fraction"] == (density == 0).double().mean()
    assert values["dense_fraction"] == (density > 0.1).double().mean()
    torch.testing.assert_close(statistics.density(), density)
    strength = dense.double().sum(0) / active.sum(0).clamp(min=1)
    torch.testing.assert_close(statistics.mean_when_active(), strength)
    torch.testing.assert_close(statistics.maximum, dense.double().amax(0))


def test_a_selected_zero_is_not_active():
    latent, value = torch.tensor([[0, 1], [2, 1]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    statistics = SparsityStatistics(4)
    statistics.update(SparseCodes.from_fixed_k(latent, value, 4))
    assert statistics.values()["l0_mean"] == 0.5
    assert statistics.values()["dead_fraction"] == 0.75
    assert statistics.l0_histogram.tolist() == [1, 1, 0, 0, 0]


@settings(deadline=None, max_examples=30)
@given(n_rows=st.integers(1, 2_000_000), seed=st.integers(0, 2**31))
def test_density_histogram_counts_every_latent_once(n_rows, seed):
    generator = torch.Generator().manual_seed(seed)
    count = torch.cat(
        [torch.tensor([0, 1, n_rows]), torch.randint(0, n_rows + 1, (50,), generator=generator)]
    )
    histogram = density_histogram(count.double() / n_rows, n_rows)
    assert sum(histogram["latents"]) + histogram["never_active"] == len(count)
    assert histogram["never_active"] == (count == 0).sum()
    assert histogram["log10_edges"][0] <= -math.log10(n_rows)
    assert histogram["log10_edges"][-1] == 0


def test_kl_equals_the_dense_definition_across_chunks():
    generator = torch.Generator().manual_seed(0)
    clean = 3 * torch.randn(4, 5, 70_000, generator=generator)
    other = clean + torch.randn(clean.shape, generator=generator)
    p, q = clean.double().softmax(-1), other.double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    found = kl_divergence(clean.repeat(10, 1, 1), other.repeat(10, 1, 1))
    torch.testing.assert_close(found, expected.repeat(10, 1), rtol=1e-5, atol=1e-7)
    assert kl_divergence(clean, clean).abs().max() == 0


def test_loss_recovered_is_undefined_where_ablation_costs_nothing():
    assert loss_recovered(clean=3.0, spliced=3.5, ablated=8.0) == pytest.approx(0.9)
    assert loss_recovered(clean=3.0, spliced=3.5, ablated=3.0) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    x, hat = random_rows(5, seed=6)
    hat[2, 3] = bad
    with pytest.raises(ActivationError, match=r"the reconstruction holds 1 values of 30 .* NaN"):
        ReconstructionStatistics(D_IN).update(x, hat)
    codes = SparseCodes.from_fixed_k(torch.tensor([[0]]), torch.tensor([[bad]]), 4)
    with pytest.raises(ActivationError, match="the codes holds 1"):
        SparsityStatistics(4).update(codes)


def test_undefined_statistics_are_refused():
    with pytest.raises(ActivationError, match="no activation row is left"):
        ReconstructionStatistics(D_IN).values()
    with pytest.raises(ActivationError, match="no codes to count"):
        SparsityStatistics(3).values()
    constant = torch.full((1000, D_IN), 0.1)
    with pytest.raises(ActivationError, match="all equal"):
        fvu(constant, constant)


def test_every_number_has_a_metric_and_every_definition_takes_its_facts():
    statistics, codes = ReconstructionStatistics(D_IN), SparsityStatistics(D_SAE)
    statistics.update(*random_rows(9, seed=7))
    codes.update(SparseCodes.from_dense(random_codes(9, seed=7)))
    assert set(statistics.values()) | set(codes.values()) <= set(METRICS)
    for name in METRICS:
        text = define(name)
        assert "{" not in text
        assert text.count("(") == text.count(")")
        assert text.endswith(".")
    assert "of the 1,234 evaluated rows" in define("dead_fraction", n_rows=1234)


def test_every_metric_says_which_direction_is_better():
    better = {name: metric.better for name, metric in METRICS.items()}
    assert better["fvu"] == better["mode_threshold_kl"] == "lower"
    assert better["explained_variance"] == better["mode_plain_loss_recovered_zero"] == "higher"
    assert {better[name] for name in ("l0_mean", "l2_ratio", "n_rows", "loss_clean")} == {"neither"}
