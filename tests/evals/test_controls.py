"""Controls: what they are, that they are measured beside a dictionary, and what is said of both."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.dictionary import load_dictionary
from saelab.evals.controls import (
    CONTROLS,
    Fit,
    firing_thresholds,
    frozen_twins,
    share_of_the_way,
)
from saelab.evals.core.config import CoreConfig
from saelab.evals.core.suite import SUITE, run_core
from saelab.evals.terminal import show
from saelab.formats.evaluation_result import MeasuredMetric, read_evaluation_result

QUICK = {"n_tokens": 640, "n_loss_tokens": 128, "device": "cpu"}


@pytest.fixture
def fit():
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(200, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 2
    return Fit(rows, torch.tensor([0, 1, 7, 60, 150, 199, 200, 3, 3, 3]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(0, 100))
def test_a_threshold_leaves_as_many_rows_as_asked_for(n_active, seed):
    rows = torch.randn(12, len(n_active), generator=torch.Generator().manual_seed(seed))
    thresholds = firing_thresholds(rows, torch.tensor(n_active))
    assert (rows > thresholds).sum(dim=0).tolist() == n_active


def test_random_directions_fire_as_often_as_the_trained_latents(fit):
    control = CONTROLS["random"](fit)
    codes = control.encode(fit.rows).to_dense()
    assert (codes > 0).sum(dim=0).tolist() == fit.n_active.tolist()
    torch.testing.assert_close(control.W_dec.norm(dim=1), torch.ones(10))


def test_the_factor_of_random_codes_is_that_of_least_squares(fit):
    control = CONTROLS["random"](fit)
    rows = fit.rows.double().numpy()
    directions = control.W_dec.double().numpy()
    factor = float(control.W_enc[:, 0].norm())
    codes = control.encode(fit.rows).to_dense().double().numpy() / factor
    written = codes @ directions
    centred = written - written.mean(axis=0)
    expected = (centred * (rows - rows.mean(axis=0))).sum() / (centred**2).sum()
    assert factor == pytest.approx(expected, rel=1e-4)
    numpy.testing.assert_allclose(control(fit.rows).mean(dim=0), rows.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["pca", "neurons"])
def test_a_basis_with_every_component_active_leaves_no_error(fit, kind):
    everything = Fit(fit.rows, torch.full((10,), 200))
    control = CONTROLS[kind](everything)
    assert control.k == 8
    torch.testing.assert_close(control(fit.rows), fit.rows, rtol=1e-4, atol=1e-4)


def test_the_first_component_is_that_of_the_largest_variance(fit):
    direction = CONTROLS["pca"](fit).W_dec[0].double().numpy()
    covariance = numpy.cov(fit.rows.double().numpy().T)
    assert direction @ covariance @ direction == pytest.approx(
        numpy.linalg.eigvalsh(covariance)[-1], rel=1e-4
    )


@pytest.mark.parametrize(
    ("better", "value", "controls", "best", "share"),
    [
        ("lower", 0.2, [0.6, 0.4], 0, 0.5),
        ("higher", 0.8, [0.6, None], 1, 0.5),
        ("higher", 0.5, [0.6], 1, -0.25),
        ("higher", 0.5, [1.0], 1, None),
        ("higher", None, [0.6], 1, None),
        ("higher", 0.5, [None], 1, None),
        ("higher", 0.5, [0.4], None, None),
    ],
)
def test_the_share_of_the_way_is_from_the_best_control(better, value, controls, best, share):
    metric = MeasuredMetric(name="a", value=value, unit="1", definition="", better=better)
    assert share_of_the_way(metric, controls, best) == (
        share if share is None else pytest.approx(share)
    )


def test_controls_stand_beside_the_numbers(save_trained, topk_dictionary, capsys):
    folder = save_trained(topk_dictionary(), "trained")
    config = CoreConfig(**QUICK)
    [result] = run_core([folder], config)
    path = folder / "evals" / "core.json"
    assert read_evaluation_result(path).tables == result.tables
    [table] = [table for table in result.tables if table.section == "Controls"]
    fvu = dict(zip(table.columns, next(row for row in table.rows if row[0] == "fvu"), strict=True))
    of_random = read_evaluation_result(folder / "evals/controls/random/evals/core.json")
    assert fvu["trained"] == result.value("fvu")
    assert fvu["random directions"] == of_random.value("fvu")
    assert of_random.value("l0_mean") == pytest.approx(result.value("l0_mean"), rel=0.05)
    best = min(fvu[name] for name in ("random directions", "principal components", "channels"))
    assert fvu["share of the way"] == pytest.approx((fvu["trained"] - best) / (0 - best))
    assert "Beside controls" in path.with_suffix(".html").read_text()
    assert not (folder / "evals/controls/random/evals/core.html").exists()
    show(SUITE, [(path, result)])
    assert "beside controls" in capsys.readouterr().out


def test_controls_are_built_and_measured_once(save_trained, topk_dictionary):
    folder = save_trained(topk_dictionary(), "trained")
    run_core([folder], CoreConfig(**QUICK))
    files = [
        folder / "evals/core.json",
        folder / "evals/controls/pca/saelab.json",
        folder / "evals/controls/pca/evals/core.json",
    ]
    before = [path.stat().st_mtime_ns for path in files]
    run_core([folder], CoreConfig(**QUICK))
    assert [path.stat().st_mtime_ns for path in files] == before


def test_controls_follow_the_dictionary(save_trained, topk_dictionary):
    folder = save_trained(topk_dictionary(), "trained")
    run_core([folder], CoreConfig(**QUICK))
    save_trained(topk_dictionary(seed=1), "trained")
    run_core([folder], CoreConfig(**QUICK, overwrite=True))
    control = load_dictionary(folder / "evals/controls/random")
    assert control.manifest["config"]["of"] == load_dictionary(folder).content_hash


def test_without_controls_there_are_none(save_trained, topk_dictionary):
    folder = save_trained(topk_dictionary(), "trained")
    [result] = run_core([folder], CoreConfig(**QUICK, controls=()))
    assert not [table for table in result.tables if table.section == "Controls"]
    assert not (folder / "evals/controls").exists()


def test_a_frozen_decoder_trained_alike_is_a_control(save_trained, topk_dictionary):
    free = save_trained(topk_dictionary(), "free")
    frozen = save_trained(
        topk_dictionary(seed=1), "frozen", training={"options": {"decoder": "frozen"}}
    )
    other = save_trained(topk_dictionary(seed=2), "other", training={"target_l0": 9})
    assert frozen_twins([free, frozen, other]) == [{"frozen": 1}, {}, {}]
    results = run_core([free, frozen, other], CoreConfig(**QUICK, controls=("pca",)))
    columns = [
        next(t.columns for t in result.tables if t.section == "Controls") for result in results
    ]
    assert ["frozen decoder" in each for each in columns] == [True, False, False]


def test_a_model_with_shuffled_weights_is_a_control(
    save_trained, topk_dictionary, tiny_model_folder
):
    folder = save_trained(topk_dictionary(), "trained")
    [result] = run_core([folder], CoreConfig(**QUICK, controls=("random-model",)))
    control = load_dictionary(folder / "evals/controls/random-model")
    assert control.model_name == f"shuffled:{tiny_model_folder}"
    assert control.norm_ceiling is None
    of_control = read_evaluation_result(control.folder / "evals/core.json")
    assert of_control.value("l0_mean") == pytest.approx(result.value("l0_mean"), rel=0.1)
    [table] = [table for table in result.tables if table.section == "Controls"]
    assert "shuffled model" in table.columns
