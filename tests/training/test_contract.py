"""What every method must do: learn, go on from a restored state, become a dictionary."""

import dataclasses

import pytest
import torch

from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import Normalisation, TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import METHODS, MethodOptions
from saelab.training.schedule import Schedule

D_IN, D_SAE, K, ROWS, STEPS = 12, 64, 4, 64, 24
NORMALISATION = Normalisation(torch.linspace(-1, 1, D_IN), 0.5)


def planted_rows(n, seed):
    """Sparse non-negative mixtures of 40 directions, in the units of a model."""
    fixed = torch.Generator().manual_seed(123)
    directions = torch.randn(40, D_IN, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, 40, generator=generator) < 0.1
    strengths = active * (0.5 + torch.rand(n, 40, generator=generator))
    return strengths @ directions * 3 + 2


def batch(step, rows=ROWS):
    raw = planted_rows(rows, step)
    gradients = torch.randn(rows, D_IN, generator=torch.Generator().manual_seed(step + 999))
    return TrainingBatch(
        NORMALISATION.apply(raw),
        NORMALISATION.apply(raw),
        gradients * 1e-3,
        step=step,
        normalisation=NORMALISATION,
    )


def build(name, product_dtype=torch.bfloat16, n_steps=STEPS, d_in=D_IN, d_out=None):
    return Learner.build(
        DictionarySpec(name, D_SAE, K, 0),
        d_in=d_in,
        d_out=d_out,
        schedule=Schedule.of(n_steps),
        batch_rows=ROWS,
        options=MethodOptions(),
        optimizer=OptimizerConfig(),
        product_dtype=product_dtype,
        device=torch.device("cpu"),
    )


def finished(learner):
    if learner.method.needs_calibration:
        rows = torch.cat([batch(step).inputs for step in range(1000, 1016)])
        learner.method.calibrate(rows)
    return learner.method.to_dictionary(NORMALISATION)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_restored_from_its_state_goes_on_bit_for_bit(name):
    whole, first = build(name), build(name)
    cut = 2 * STEPS // 3
    for step in range(STEPS):
        whole.step(batch(step))
        if step < cut:
            first.step(batch(step))
    state = {key: tensor.detach().contiguous().clone() for key, tensor in first.state().items()}
    second = build(name)
    second.restore(state)
    for step in range(cut, STEPS):
        second.step(batch(step))
    for key, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[key]), key
    for one, other in zip(
        finished(whole).tensors().values(), finished(second).tensors().values(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_and_says_so(name):
    learner = build(name, n_steps=120)
    for step in range(120):
        last = learner.step(batch(step))
    x = batch(119).inputs
    error = float((x - last.reconstruction.detach()).square().mean())
    assert error < 0.8 * float((x - x.mean(0)).square().mean())
    for name_of, value in learner.method.metrics().items():
        assert isinstance(value, float | int), name_of
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in last.losses.values())


@pytest.mark.parametrize("name", METHODS)
def test_the_dictionary_is_finite_sparse_and_of_its_shape(name):
    learner = build(name, n_steps=120)
    for step in range(120):
        learner.step(batch(step))
    dictionary = finished(learner)
    assert (dictionary.d_in, dictionary.d_sae) == (D_IN, D_SAE)
    assert all(torch.isfinite(tensor).all() for tensor in dictionary.tensors().values())
    rows = planted_rows(500, 77)
    codes = dictionary.encode(rows)
    assert bool((codes.value > 0).all())
    assert 0 < float(codes.l0().double().mean()) < D_SAE / 2
    assert dictionary(rows).shape == rows.shape
    error = (rows - dictionary(rows)).square().sum() / (rows - rows.mean(0)).square().sum()
    assert float(error) < 1.0


D_OUT = 8
WRITTEN = Normalisation(torch.linspace(0, 3, D_OUT), 0.25)
BOTH = dataclasses.replace(NORMALISATION, written=WRITTEN)
WRITERS = [name for name, method in METHODS.items() if method.autoencodes_only is None]


def written_rows(raw):
    """What a transcoder is to write: a fixed nonlinear function of what it reads."""
    matrix = torch.randn(D_IN, D_OUT, generator=torch.Generator().manual_seed(5))
    return torch.relu((raw - 2) @ matrix) + 1


def transcoder_batch(step):
    raw = planted_rows(ROWS, step)
    targets = WRITTEN.apply(written_rows(raw))
    gradients = torch.randn(ROWS, D_OUT, generator=torch.Generator().manual_seed(step + 999))
    return TrainingBatch(
        NORMALISATION.apply(raw),
        targets,
        gradients * 1e-3,
        step=step,
        normalisation=BOTH,
    )


@pytest.mark.parametrize("name", WRITERS)
def test_a_method_learns_to_write_what_it_does_not_read(name):
    learner = build(name, n_steps=150, d_out=D_OUT)
    for step in range(150):
        output = learner.step(transcoder_batch(step))
    assert output.reconstruction.shape == (ROWS, D_OUT)
    if learner.method.needs_calibration:
        rows = torch.cat([transcoder_batch(step).inputs for step in range(1000, 1016)])
        learner.method.calibrate(rows)
    dictionary = learner.method.to_dictionary(BOTH)
    assert (dictionary.d_in, dictionary.d_sae, dictionary.d_out) == (D_IN, D_SAE, D_OUT)
    raw = planted_rows(2000, 77)
    error, targets = dictionary.error(raw, written_rows(raw)), written_rows(raw)
    assert float(error.square().sum() / (targets - targets.mean(0)).square().sum()) < 0.8


def test_folding_brings_both_hook_points_back_to_their_own_units():
    learner = build("topk", product_dtype=None, d_out=D_OUT)
    for step in range(STEPS):
        learner.step(transcoder_batch(step))
    batch = transcoder_batch(99)
    expected = learner.method.losses(batch).reconstruction.detach()
    found = learner.method.to_dictionary(BOTH)(NORMALISATION.undo(batch.inputs))
    torch.testing.assert_close(found, WRITTEN.undo(expected), rtol=1e-4, atol=1e-4)


def test_hook_points_side_by_side_keep_their_own_scales():
    joined = Normalisation.joined([NORMALISATION, WRITTEN])
    learner = build("topk", product_dtype=None, d_in=D_IN + D_OUT)
    raw = planted_rows(ROWS, 3)
    rows = torch.cat([raw, written_rows(raw)], dim=1)
    inputs = joined.apply(rows)
    torch.testing.assert_close(inputs[:, :D_IN], NORMALISATION.apply(raw))
    learner.step(TrainingBatch(inputs, inputs, None, step=0))
    output = learner.method.losses(TrainingBatch(inputs, inputs, None, step=1))
    found = learner.method.to_dictionary(joined)(rows)
    torch.testing.assert_close(
        found, joined.undo(output.reconstruction.detach()), rtol=1e-3, atol=1e-3
    )
