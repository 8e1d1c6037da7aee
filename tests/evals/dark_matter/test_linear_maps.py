"""Linear maps of other dictionaries' outputs against least squares in float64, row by row."""

import dataclasses

import pytest
import torch

from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.dictionary.decomposition import ErrorProbe, decompose
from saelab.errors import ActivationError, ArtifactError, ConfigError
from saelab.evals.dark_matter.linear_maps import (
    JOINT,
    OWN,
    SourceRows,
    linear_maps_chart,
    measure_linear_maps,
    numbers,
    source_data_specs,
    source_rows,
)
from saelab.evals.dark_matter.rows import CONTEXT_TEST, cells_of
from saelab.evals.dark_matter.suite import DarkMatterConfig


def values(findings):
    return {name: finding.value for name, finding in numbers(findings).items()}


EARLIER, MLP = "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"


@pytest.fixture
def family(save_trained, topk_dictionary):
    saved = load_dictionary(save_trained(topk_dictionary(0), "target"))
    sources = {
        hook: load_dictionary(save_trained(topk_dictionary(seed), f"source{seed}", hook_point=hook))
        for seed, hook in ((1, EARLIER), (2, MLP))
    }
    return saved, sources


@pytest.fixture
def probe():
    return ErrorProbe(0.3 * torch.eye(32), torch.full((32,), 0.1))


def rows_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(n, 32, generator=generator)

    x = normal()
    index = torch.arange(n)
    return SourceRows(
        activations=x,
        sources={EARLIER: x + 0.5 * normal(), MLP: normal()},
        sequence=index // 10,
        position=index % 10,
    )


def parts_of(rows, n):
    for start in range(0, len(rows.activations), n):
        part = slice(start, start + n)
        yield SourceRows(
            activations=rows.activations[part],
            sources={name: source[part] for name, source in rows.sources.items()},
            sequence=rows.sequence[part],
            position=rows.position[part],
        )


def by_hand(regressors, targets, test):
    """R² of least squares with a constant, fitted on the rows outside `test`."""
    design = torch.cat([regressors, torch.ones(len(regressors), 1)], 1).double()
    solution = torch.linalg.lstsq(design[~test], targets[~test], driver="gelsd").solution
    left = (targets - design @ solution)[test]
    about_mean = targets[test] - targets[test].mean(0)
    per_dimension = 1 - left.square().sum(0) / about_mean.square().sum(0)
    pooled = 1 - float(left.square().sum() / about_mean.square().sum())
    return float(per_dimension.mean()), pooled, float(left.square().sum())


def test_scores_are_those_of_least_squares_on_held_out_contexts(family, probe):
    saved, sources = family
    rows = rows_of(3000)
    found = measure_linear_maps(saved, probe, sources, parts_of(rows, 700), seed=3)
    test = cells_of(rows.sequence, rows.position, seed=3, train_fraction=0.6) >= CONTEXT_TEST[0]
    assert (found.n_train_rows, found.n_test_rows) == (int((~test).sum()), int(test.sum()))
    parts = decompose(saved.dictionary, probe, rows.activations)
    targets = {
        "error": parts.error,
        "linear": parts.linear_error,
        "nonlinear": parts.nonlinear_error,
    }
    outputs = {name: source.dictionary(rows.sources[name]) for name, source in sources.items()}
    regressors = {OWN: parts.reconstruction, **outputs}
    regressors[JOINT] = torch.cat(list(outputs.values()), 1)
    x = rows.activations.double()[test]
    variance = float((x - x.mean(0)).square().sum())
    assert set(found.r_squared) == set(regressors)
    for source, columns in regressors.items():
        for target, rows_of_target in targets.items():
            mean, pooled, left = by_hand(columns, rows_of_target.double(), test)
            assert found.r_squared[source][target] == pytest.approx((mean, pooled), abs=2e-5)
            if target == "error":
                assert found.fvu_corrected[source] == pytest.approx(left / variance, rel=1e-4)
    error = parts.error.double()[test]
    assert found.fvu == pytest.approx(float(error.square().sum()) / variance, rel=1e-6)
    # More regressors explain more; the earlier hook point knows the activation, the other not.
    nonlinear = {name: scores["nonlinear"][1] for name, scores in found.r_squared.items()}
    assert nonlinear[EARLIER] > nonlinear[MLP]
    error = linear_maps_chart(found).series[0]
    assert error.x == list(found.r_squared) and len(error.y) == 4
    assert all(number.unit and number.text for number in numbers(found).values())
    assert "map_r2_nonlinear_from_blocks_0_hook_resid_post" in values(found)


def test_batches_do_not_change_the_scores(family, probe):
    saved, sources = family
    rows = rows_of(800)
    one, other = (
        values(measure_linear_maps(saved, probe, sources, parts_of(rows, n))) for n in (800, 37)
    )
    assert one == pytest.approx(other, rel=1e-8)


def test_a_rank_deficient_output_is_regularised(family, probe, save_trained, topk_dictionary):
    saved, sources = family
    few = torch.randn(48, 32, generator=torch.Generator().manual_seed(9))
    few = few[torch.arange(48) % 3]
    flat = load_dictionary(save_trained(topk_dictionary(W_dec=few), "flat", hook_point=MLP))
    found = measure_linear_maps(saved, probe, {**sources, MLP: flat}, [rows_of(2000)])
    scores = [score for by_target in found.r_squared.values() for score in by_target.values()]
    assert all(-0.5 < mean <= 1 for mean, _ in scores)


def test_too_few_rows_are_refused_in_words(family, probe):
    saved, sources = family
    with pytest.raises(ActivationError, match=r"the map from .* rows to fit"):
        measure_linear_maps(saved, probe, sources, [rows_of(40)])


def test_rows_of_all_hook_points_come_from_the_same_tokens(family, tiny_model):
    saved, sources = family
    config = DarkMatterConfig()
    spec = data_spec_of(saved, config)
    named = source_data_specs(tiny_model, spec, list(sources.values()), config)
    options = {"n_tokens": 96, "first_position": 3}
    one, *rest = source_rows(tiny_model, spec, named, batch_contexts=3, **options)
    assert not rest and int(one.position.min()) >= 3
    assert len(one.activations) == len(one.sources[MLP]) == len(one.sequence)
    parts = list(source_rows(tiny_model, spec, named, batch_contexts=1, **options))
    torch.testing.assert_close(torch.cat([p.activations for p in parts]), one.activations)
    assert torch.equal(torch.cat([p.sequence for p in parts]), one.sequence)


def test_sources_that_do_not_fit_are_refused(family, tiny_model, save_trained, topk_dictionary):
    saved, sources = family
    config = DarkMatterConfig()
    spec = data_spec_of(saved, config)
    with pytest.raises(ConfigError, match="the hook point that is judged"):
        source_data_specs(tiny_model, spec, [saved], config)
    with pytest.raises(ConfigError, match=r"are both of blocks\.1\.hook_mlp_out"):
        source_data_specs(tiny_model, spec, [sources[MLP], sources[MLP]], config)
    other = dataclasses.replace(spec, model_hash="0" * 64)
    with pytest.raises(ArtifactError, match="another model than the dictionary"):
        source_data_specs(tiny_model, other, [sources[MLP]], config)
