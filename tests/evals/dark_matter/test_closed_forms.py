"""The golden numbers of the paper's page: constants of the norm test, planted noise, closed forms.

Sizes are the page's (256 dimensions, 12,000 training rows), so its tolerances hold.
"""

import math

import pytest
import torch

from saelab.evals.dark_matter.regression import RegressionStatistics

D, TRAIN, TEST = 256, 12_000, 6_000


def held_out(regressors, targets, ridge=1e-6):
    """Scores on the last `TEST` rows of a fit to the first `TRAIN`."""
    cell = (torch.arange(len(regressors)) >= TRAIN).long()
    statistics = RegressionStatistics(regressors.shape[1], targets.shape[1], 2)
    statistics.update(regressors, targets, cell)
    return statistics.moments([1]).score(statistics.moments([0]).fit(ridge=ridge)), cell


def norm_r_squared(vectors):
    scores, _ = held_out(vectors, vectors.double().square().sum(1, keepdim=True))
    return scores.pooled_r_squared()


def weights(kind, shape, generator):
    normal = torch.randn(shape, generator=generator)
    return {
        "constant": torch.ones(shape),
        "half_normal": normal.abs(),
        "exponential": -torch.rand(shape, generator=generator).clamp(min=1e-9).log(),
        "lognormal": normal.exp(),
    }[kind]


def sparse_sums(dictionary, l0, kind, seed=0):
    """Rows that are sums of about `l0` random features of a dictionary."""
    generator = torch.Generator().manual_seed(seed)
    n, m = TRAIN + TEST, len(dictionary)
    active = torch.rand(n, m, generator=generator) < l0 / m
    return (weights(kind, (n, m), generator) * active) @ dictionary


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("constant", 0.999, 1.0),
        ("half_normal", 0.82, 0.87),
        ("exponential", 0.69, 0.78),
        ("lognormal", 0.22, 0.42),
    ],
)
def test_norms_of_sparse_sums_of_orthogonal_features(kind, low, high):
    """C12: constant 1.00, half-normal .845, exponential about .735, lognormal .26 to .38."""
    assert low <= norm_r_squared(sparse_sums(torch.eye(D), 12, kind)) <= high


def test_norms_of_gaussians_cannot_be_predicted():
    """C12: -0.01."""
    generator = torch.Generator().manual_seed(0)
    r2 = norm_r_squared(torch.randn(TRAIN + TEST, D, generator=generator))
    assert r2 == pytest.approx(-0.02, abs=0.02)


def test_a_random_overcomplete_dictionary_is_hardly_predictable_either():
    """C12: only .1 to .3, so a low R² is no proof that there are no features."""
    generator = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(4 * D, D, generator=generator), dim=1)
    assert 0.1 <= norm_r_squared(sparse_sums(features, 12, "exponential")) <= 0.3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("constant", 1.0), ("half_normal", 0.85), ("exponential", 0.75), ("lognormal", 0.37)],
)
def test_one_rare_feature_has_the_ratio_of_moments(kind, expected):
    """R² -> E[w³]² / (E[w²] E[w⁴]) as the feature grows rare; checked against that ratio itself.

    The lognormal's ratio is e⁹/(e² e⁸) = 0.368 exactly; its fourth sample moment does not settle
    in any sample one can afford, so there the formula alone is checked.
    """
    moments = {
        "constant": (1, 1, 1),
        "half_normal": (1, math.sqrt(8 / math.pi), 3),
        "exponential": (2, 6, 24),
        "lognormal": (math.exp(2), math.exp(4.5), math.exp(8)),
    }
    second, third, fourth = moments[kind]
    assert third**2 / (second * fourth) == pytest.approx(expected, abs=0.005)
    if kind == "lognormal":
        return
    generator = torch.Generator().manual_seed(0)
    n = 2_000_000
    w = weights(kind, (n,), generator).double() * (torch.rand(n, generator=generator) < 0.003)
    statistics = RegressionStatistics(1, 1)
    statistics.update(w[:, None], w[:, None].square())
    found = statistics.moments()
    assert found.score(found.fit()).pooled_r_squared() == pytest.approx(expected, abs=0.04)


def planted(dense=0.0, introduced=0.0, absent=0.0, seed=0):
    """x = signal + dense noise, Sae(x) = learned part of the signal + introduced noise.

    1,024 random unit features in 256 dimensions, L0 20; noise in units of the signal's standard
    deviation per dimension. Returns FVU, FVU_nonlinear and R² of the error vector, held out.
    """
    generator = torch.Generator().manual_seed(seed)
    n, m = TRAIN + TEST, 1024
    features = torch.nn.functional.normalize(torch.randn(m, D, generator=generator), dim=1)
    active = torch.rand(n, m, generator=generator) < 20 / m
    codes = weights("half_normal", (n, m), generator) * active
    learned = (torch.arange(m) >= absent * m).float()
    signal = codes @ features
    scale = float(signal.std(0).mean())
    x = signal + dense * scale * torch.randn(n, D, generator=generator)
    hat = (codes * learned) @ features + introduced * scale * torch.randn(n, D, generator=generator)
    scores, cell = held_out(x, x - hat)
    test = x[cell == 1].double()
    variance = (test - test.mean(0)).square().sum()
    error = (x - hat)[cell == 1].double().square().sum()
    return (
        float(error / variance),
        float(scores.squared_error.sum() / variance),
        scores.mean_r_squared(),
    )


def test_introduced_noise_stays_nonlinear():
    """C13: FVU .36, FVU_nonlinear .37."""
    fvu, nonlinear, _ = planted(introduced=0.6)
    assert fvu == pytest.approx(0.36, abs=0.01)
    assert nonlinear == pytest.approx(0.37, abs=0.01)


def test_dense_noise_is_mostly_linear():
    """C13: FVU .265, FVU_nonlinear .19."""
    fvu, nonlinear, _ = planted(dense=0.6)
    assert fvu == pytest.approx(0.265, abs=0.01)
    assert nonlinear == pytest.approx(0.19, abs=0.01)


def test_both_noises():
    """C13: FVU .53, FVU_nonlinear .46."""
    fvu, nonlinear, _ = planted(dense=0.6, introduced=0.6)
    assert fvu == pytest.approx(0.53, abs=0.012)
    assert nonlinear == pytest.approx(0.46, abs=0.012)


def test_absent_features_are_linear_in_part():
    """C13: with half of the features absent FVU .50, FVU_nonlinear .19, R² .61."""
    fvu, nonlinear, r2 = planted(absent=0.5)
    assert fvu == pytest.approx(0.50, abs=0.015)
    assert nonlinear == pytest.approx(0.19, abs=0.015)
    assert r2 == pytest.approx(0.61, abs=0.03)


def test_fvu_nonlinear_has_its_closed_form_for_gaussians():
    """E11: [sum s_a² l/(l + s_a²) + d s_r²] / sum (l + s_a²), to one per cent."""
    generator = torch.Generator().manual_seed(0)
    n, d, dense, introduced = TRAIN + TEST, 32, 0.5, 0.3
    spectrum = torch.logspace(-1, 1, d)
    signal = spectrum.sqrt() * torch.randn(n, d, generator=generator)
    x = signal + dense * torch.randn(n, d, generator=generator)
    hat = signal + introduced * torch.randn(n, d, generator=generator)
    scores, cell = held_out(x, x - hat)
    test = x[cell == 1].double()
    found = float(scores.squared_error.sum() / (test - test.mean(0)).square().sum())
    above = (dense**2 * spectrum / (spectrum + dense**2)).sum() + d * introduced**2
    theory = float(above / (spectrum + dense**2).sum())
    assert found == pytest.approx(theory, rel=0.02)
