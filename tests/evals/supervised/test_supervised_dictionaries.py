"""Features from labels: golden numbers of the paper's page, and a dense float64 version."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import ActivationError, ConfigError
from saelab.evals.supervised.contenders import best_thresholds
from saelab.evals.supervised.dictionaries import (
    RANK_TOLERANCE,
    Design,
    DesignSums,
    fit_supervised,
    random_decoder,
)
from saelab.evals.supervised.sites import PromptSite


def design_of_sizes(sizes, nested=None):
    values = {name: tuple(f"{name}{i}" for i in range(size)) for name, size in sizes.items()}
    return Design(values, nested or {})


def feature(dictionary, attribute, value):
    design = dictionary.design
    return dictionary.W_dec[design.columns(attribute)][design.attributes[attribute].index(value)]


def rank(sums, n_prompts):
    """Independent columns of the design with a column of ones, as far as prompts show."""
    counts = sums.together.diagonal()[None]
    n = torch.full((1, 1), float(n_prompts), dtype=torch.float64)
    whole = torch.cat([torch.cat([sums.together, counts.T], 1), torch.cat([counts, n], 1)])
    values = torch.linalg.eigvalsh(whole)
    return int((values > RANK_TOLERANCE * values[-1]).sum())


def explained_by(dictionary, index):
    return dictionary.bias.double() + dictionary.W_dec.double()[index].sum(1)


def fvu(x, reconstruction):
    return float((x - reconstruction).square().sum() / (x - x.mean(0)).square().sum())


@pytest.fixture(scope="module")
def names_and_order():
    """x = 3 + U_io + 0.8 V_s + P_pos + 0.3 noise with 216, 216 and 2 values, 20,000 prompts."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"io": 216, "s": 216, "pos": 2}
    scales = {"io": 1.0, "s": 0.8, "pos": 1.0}
    parts = [torch.randint(size, (20_000,), generator=generator) for size in sizes.values()]
    truth = {
        name: torch.randn(size, 64, generator=generator) * scales[name]
        for name, size in sizes.items()
    }
    x = 3 + 0.3 * torch.randn(20_000, 64, generator=generator)
    for column, features in zip(parts, truth.values(), strict=True):
        x += features[column]
    design = design_of_sizes(sizes)
    index = torch.stack([p + o for p, o in zip(parts, design.offsets.values(), strict=True)], 1)
    return design, index, x, truth


def test_golden_fvu_of_mean_and_mse(names_and_order):
    design, index, x, _ = names_and_order
    sums = DesignSums(design, index)
    assert fvu(x, explained_by(sums.mean_dictionary(x), index)) == pytest.approx(0.053, abs=0.002)
    assert fvu(x, explained_by(sums.mse_dictionary(x), index)) == pytest.approx(0.041, abs=0.002)


def test_golden_rank_gauge_and_size_of_features(names_and_order):
    design, index, x, truth = names_and_order
    sums = DesignSums(design, index)
    assert design.n_features + 1 - rank(sums, len(x)) == 3
    dictionary = sums.mse_dictionary(x)
    torch.testing.assert_close(dictionary.bias, x.double().mean(0).float(), atol=1e-6, rtol=0)
    # A solver that takes the design for one of full rank gives features in the thousands.
    assert dictionary.W_dec.abs().max() < 10
    expected = truth["io"] - truth["io"].mean(0)
    cosines = torch.cosine_similarity(dictionary.W_dec[:216], expected)
    assert cosines.mean() > 0.998
    mean = sums.mean_dictionary(x)
    assert 0.985 < torch.cosine_similarity(mean.W_dec[:216], expected).mean() < 0.998
    apart = (mean.W_dec - dictionary.W_dec)[:216].norm() / dictionary.W_dec[:216].norm()
    assert 0.05 < apart < 0.2


def test_an_attribute_given_twice_breaks_the_mean_but_not_the_mse(names_and_order):
    design, index, x, _ = names_and_order
    doubled = design_of_sizes({"io": 216, "s": 216, "pos": 2, "again": 216})
    index = torch.cat([index, index[:, :1] + doubled.offsets["again"]], 1)
    sums = DesignSums(doubled, index)
    assert fvu(x, explained_by(sums.mean_dictionary(x), index)) > 0.4
    assert fvu(x, explained_by(sums.mse_dictionary(x), index)) == pytest.approx(0.041, abs=0.002)
    assert design.n_features < doubled.n_features


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 60))
def test_mse_is_the_dense_least_squares_fit(seed, n):
    generator = torch.Generator().manual_seed(seed)
    design = design_of_sizes({"a": 5, "b": 4, "c": 2})
    parts = [torch.randint(size, (n,), generator=generator) for size in (5, 4, 2)]
    # The third attribute repeats part of the second: rows short of rank in every way.
    parts[2] = (parts[1] > 1).long()
    index = torch.stack([p + o for p, o in zip(parts, design.offsets.values(), strict=True)], 1)
    x = torch.randn(n, 3, generator=generator)
    sums = DesignSums(design, index)
    dictionary = sums.mse_dictionary(x)
    one_hot = torch.zeros(n, 11, dtype=torch.float64).scatter_(1, index, 1.0)
    with_ones = torch.cat([one_hot, torch.ones(n, 1, dtype=torch.float64)], 1)
    best = with_ones @ (torch.linalg.pinv(with_ones) @ x.double())
    torch.testing.assert_close(explained_by(dictionary, index), best, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary.bias.double(), x.double().mean(0), atol=1e-6, rtol=0)
    for name in design.attributes:
        part = design.columns(name)
        weighted = dictionary.counts[part].double() @ dictionary.W_dec[part].double()
        torch.testing.assert_close(weighted, torch.zeros_like(weighted), atol=1e-4, rtol=0)
    torch.testing.assert_close(rank(sums, n), int(torch.linalg.matrix_rank(with_ones)))


def test_mean_features_are_the_means_of_their_prompts():
    generator = torch.Generator().manual_seed(1)
    design = design_of_sizes({"a": 3, "b": 2})
    index = torch.stack(
        [
            torch.randint(3, (50,), generator=generator),
            3 + torch.randint(2, (50,), generator=generator),
        ],
        1,
    )
    x = torch.randn(50, 4, generator=generator)
    dictionary = DesignSums(design, index).mean_dictionary(x)
    for column in range(5):
        rows = (index == column).any(1)
        expected = x[rows].double().mean(0) - x.double().mean(0)
        torch.testing.assert_close(dictionary.W_dec[column].double(), expected, atol=1e-6, rtol=0)


def test_of_nested_attributes_the_coarser_has_the_mean():
    generator = torch.Generator().manual_seed(2)
    design = design_of_sizes({"name": 6, "gender": 2}, nested={"name": "gender"})
    name = torch.randint(6, (600,), generator=generator)
    gender = name // 3
    features = torch.randn(6, 4, generator=generator)
    coarse = torch.tensor([[5.0] * 4, [-5.0] * 4])
    x = features[name] + coarse[gender]
    dictionary = DesignSums(design, torch.stack([name, gender + 6], 1)).mse_dictionary(x)
    counts = dictionary.counts.double()
    for g in range(2):
        within = slice(3 * g, 3 * g + 3)
        left = counts[within] @ dictionary.W_dec[within].double()
        torch.testing.assert_close(left, torch.zeros(4, dtype=torch.float64), atol=1e-3, rtol=0)
        expected = x[gender == g].mean(0) - x.mean(0)
        torch.testing.assert_close(dictionary.W_dec[6 + g], expected, atol=1e-4, rtol=1e-4)


def test_values_that_no_prompt_has_are_zero_and_named():
    design = design_of_sizes({"a": 3, "b": 2})
    index = torch.tensor([[0, 3], [1, 4], [0, 4]])
    x = torch.randn(3, 4)
    sums = DesignSums(design, index)
    for dictionary in (sums.mean_dictionary(x), sums.mse_dictionary(x)):
        assert dictionary.counts.tolist() == [2, 1, 0, 1, 2]
        assert not feature(dictionary, "a", "a2").any()


def test_an_edit_swaps_one_feature_and_keeps_what_is_not_explained():
    design = design_of_sizes({"a": 3, "b": 2})
    index = torch.tensor([[0, 3], [1, 4], [2, 4], [2, 3]])
    x = torch.randn(4, 5)
    dictionary = DesignSums(design, index).mse_dictionary(x)
    before, after = [{"a": "a0", "b": "b0"}], [{"a": "a2", "b": "b0"}]
    edited = dictionary.edit(x[:1], before, after)
    expected = x[:1] - feature(dictionary, "a", "a0") + feature(dictionary, "a", "a2")
    torch.testing.assert_close(edited, expected)
    codes = dictionary.codes(before)
    assert codes.tolist() == [[1, 0, 0, 1, 0]]
    torch.testing.assert_close(
        codes @ dictionary.W_dec + dictionary.bias, dictionary.reconstruct(before)
    )
    random = random_decoder(dictionary, 0)
    torch.testing.assert_close(random.W_dec.norm(dim=1), dictionary.W_dec.norm(dim=1))


def test_bad_input_is_refused_in_words(planted):
    design = design_of_sizes({"a": 2})
    task, site = planted.planted_task(), PromptSite("z", 0, 0, "end")
    with pytest.raises(ActivationError, match=r"z\.0\.0@end are not finite"):
        fit_supervised(task, task.sample(24, "train", 0), {site: torch.full((24, 2), torch.nan)})
    with pytest.raises(ConfigError, match="attribute 'a' that the design does not have"):
        DesignSums(design, torch.tensor([[-1]]))
    with pytest.raises(ConfigError, match="no attribute 'x'"):
        design.columns("x")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_thresholds_have_the_best_f1(seed, n):
    generator = torch.Generator().manual_seed(seed)
    # Rounded, so that some scores are equal.
    scores = (torch.randn(n, 3, generator=generator, dtype=torch.float64) * 3).round() / 2
    truth = torch.rand(n, 3, generator=generator) < 0.4
    found = best_thresholds(scores, truth)

    def f1(column, threshold):
        on = (scores[:, column] > threshold) & (scores[:, column] > 0)
        both = float((on & truth[:, column]).sum())
        return 2 * both / max(float(on.sum() + truth[:, column].sum()), 1.0)

    for column in range(3):
        candidates = [-10.0, *scores[:, column].tolist()]
        best = max(f1(column, threshold) for threshold in candidates)
        assert f1(column, float(found[column])) == pytest.approx(best)
