"""Dictionaries trained on a component of an error, judged on held-out rows of it."""

import pytest
import torch

from saelab.dictionary import load_dictionary
from saelab.dictionary.decomposition import ORIGIN_KEY, ErrorProbe, ErrorRows
from saelab.errors import ConfigError
from saelab.evals.dark_matter.components import (
    components_chart,
    measure_components,
    numbers,
)
from saelab.stats.metrics import fvu, mean_l0


@pytest.fixture
def probe():
    return ErrorProbe(0.4 * torch.eye(32), torch.zeros(32))


@pytest.fixture
def judged(save_trained, topk_dictionary):
    return load_dictionary(save_trained(topk_dictionary(0), "base"))


@pytest.fixture
def trained_on(save_trained, topk_dictionary, judged, probe):
    def make(part, seed, **changes):
        origin = {**ErrorRows(judged, probe, part).provenance(), **changes}
        folder = save_trained(topk_dictionary(seed), f"{part}-{seed}", **{ORIGIN_KEY: origin})
        return load_dictionary(folder)

    return make


def rows(n=500):
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(1)) + 1


def test_fvu_and_l0_are_those_of_the_component(judged, probe, trained_on):
    components = [trained_on("linear", 1), trained_on("nonlinear", 2), trained_on("error", 3)]
    found = measure_components(judged, probe, components, rows().split(130))
    x = rows()
    for score, one in zip(found.scores, components, strict=True):
        errors = ErrorRows(judged, probe, score.component)(x)
        codes = one.dictionary.encode(errors)
        assert score.fvu == pytest.approx(fvu(errors, one.dictionary.decode(codes)), rel=1e-6)
        assert score.l0 == pytest.approx(mean_l0(codes), rel=1e-6)
        fired = int(codes.fired().sum())
        assert score.dead == pytest.approx(1 - fired / one.dictionary.d_sae)
        share = errors.double().var(0).sum() / x.double().var(0).sum()
        assert found.variance_share[score.component] == pytest.approx(float(share), rel=1e-6)
    assert found.n_rows == 500
    assert all(number.unit and number.text for number in numbers(found).values())
    assert "component_fvu_linear_linear_1" in numbers(found)
    drawn = [series.name for series in components_chart(found).series]
    assert drawn == ["linear error", "nonlinear error", "whole error"]


def test_dictionaries_of_something_else_are_refused_all_at_once(judged, probe, trained_on):
    wrong = trained_on("linear", 1, dictionary_hash="0" * 64, dictionary="other")
    with pytest.raises(
        ConfigError, match=r"trained on activations.*; .*on the errors of 'other' .*000…"
    ):
        measure_components(judged, probe, [judged, wrong], rows().split(100))
    unknown = trained_on("linear", 2, component="quadratic")
    with pytest.raises(ConfigError, match="unknown component 'quadratic'"):
        measure_components(judged, probe, [unknown], rows().split(100))


def test_another_probe_of_the_same_dictionary_is_said_in_the_log(judged, trained_on, caplog):
    probe = ErrorProbe(0.5 * torch.eye(32), torch.zeros(32))
    measure_components(judged, probe, [trained_on("linear", 1)], rows().split(100))
    assert "another probe of the same dictionary" in caplog.text
