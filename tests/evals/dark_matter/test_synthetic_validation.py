"""Planted noise: the algebra of moments against rows made one by one, and what must be found."""

import pytest
import torch

from saelab.dictionary import Dictionary, load_dictionary
from saelab.errors import ActivationError
from saelab.evals.dark_matter.synthetic import (
    ABLATED,
    LEVELS,
    NoiseMoments,
    _kept_latents,
    numbers,
    synthetic_charts,
    synthetic_table,
    validate,
)


def test_moments_of_a_mixture_are_those_of_its_rows():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)

    def normal(n):
        return torch.randn(n, 6, generator=generator, dtype=torch.float64)

    clean = normal(400) @ mixing + 3
    dense, introduced, one, two = (normal(400) + i for i in range(4))
    one += clean
    moments = NoiseMoments(6, 2)
    for part in torch.arange(400).split(150):
        moments.update(clean[part], dense[part], introduced[part], [one[part], two[part]])
    x = clean + 0.7 * dense
    error = x - (two + 0.4 * introduced)
    found = moments.regression(0.7, 0.4, 1)
    centred, about_mean = x - x.mean(0), error - error.mean(0)
    assert found.n_rows == 400
    torch.testing.assert_close(found.mean_regressors, x.mean(0))
    torch.testing.assert_close(found.mean_targets, error.mean(0))
    torch.testing.assert_close(found.gram, centred.T @ centred)
    torch.testing.assert_close(found.cross, centred.T @ about_mean)
    torch.testing.assert_close(found.squares, about_mean.square().sum(0))


@pytest.fixture
def saved(save_trained):
    # Orthonormal latents with a threshold: encoding a reconstruction once more changes nothing.
    W = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(2)))[0]
    dictionary = Dictionary(
        "relu", W_enc=W.T.contiguous(), W_dec=W, b_dec=torch.ones(32), b_enc=torch.zeros(32)
    )
    return load_dictionary(save_trained(dictionary, "exact"))


def rows(n=20_000):
    generator = torch.Generator().manual_seed(4)
    return 1 + torch.randn(n, 32, generator=generator) * torch.linspace(0.5, 2, 32)


def test_planted_noise_is_found_where_it_was_planted(saved):
    found = validate(saved, rows())
    # A perfect dictionary of its own reconstructions leaves nothing.
    assert found.grid[0].fvu == pytest.approx(0, abs=1e-9)
    clean = saved.dictionary(rows()).double()
    deviation = clean.var(0, unbiased=False).mean().sqrt()
    assert found.deviation == pytest.approx(float(deviation))
    for cell in found.grid:
        dense, introduced = cell.dense**2, cell.introduced**2
        # Σ|error|² / Σ|x' − mean|² with everything in units of the clean variance.
        assert cell.fvu == pytest.approx((dense + introduced) / (1 + dense), rel=0.05, abs=1e-9)
        spectrum = torch.linalg.eigvalsh(torch.cov(clean.T, correction=0)) / deviation**2
        # What a linear map cannot tell of dense noise: s²l/(l + s²) of each direction.
        hidden = float((dense * spectrum / (spectrum + dense + 1e-300)).mean())
        expected = (hidden + introduced) / (1 + dense)
        assert cell.fvu_nonlinear == pytest.approx(expected, rel=0.05, abs=2e-3)
    assert found.correlations["introduced", "nonlinear"] > 0.6
    assert found.correlations["dense", "linear"] > 0.9
    assert abs(found.correlations["introduced", "linear"]) < 0.3


def test_leaving_latents_out_raises_fvu_more_than_its_nonlinear_part(saved):
    found = validate(saved, rows())
    line = [cell for cell in found.lines if (cell.dense, cell.introduced) == (0.0, 0.5)]
    assert [cell.ablated for cell in line] == list(ABLATED)
    fvus = [cell.fvu for cell in line]
    assert fvus == sorted(fvus) and fvus[-1] > fvus[0] + 0.05
    # Without noise every latent is a linear function of such a reconstruction but for its clipping.
    rise = line[-1].fvu_nonlinear - line[0].fvu_nonlinear
    assert rise < 0.5 * (fvus[-1] - fvus[0])


def test_latents_of_the_lowest_mean_go_first():
    mean = torch.tensor([0.5, 0.0, 2.0, 0.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0], dtype=torch.float64)
    left_out = [(~mask).nonzero().squeeze(1).tolist() for mask in _kept_latents(mean)]
    assert left_out == [[], [1], [1, 3], [0, 1, 3], [0, 1, 3, 4], [0, 1, 2, 3, 4]]


def test_values_are_defined_and_repeat_for_the_same_seed(saved):
    first, second = (validate(saved, rows(3000), seed=7) for _ in range(2))
    assert numbers(first) == numbers(second)
    assert all(number.unit and number.text for number in numbers(first).values())
    assert len(synthetic_table(first).rows) == len(LEVELS) ** 2 + 2 + 5 * len(ABLATED)
    _, ablation = synthetic_charts(first)
    assert [len(series.y) for series in ablation.series] == [len(ABLATED)] * 10


def test_rows_that_do_not_vary_and_too_few_rows_are_refused(saved):
    with pytest.raises(ActivationError, match="do not vary on these 100 rows"):
        validate(saved, torch.ones(100, 32))
    with pytest.raises(ActivationError, match="the split of planted errors has 24 rows"):
        validate(saved, rows(40))
