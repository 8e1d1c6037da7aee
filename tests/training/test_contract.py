"""What every method must do: learn, go on from a restored state, become a dictionary."""

import dataclasses

import pytest
import torch

from saelab.errors import ConfigError
from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import Normalisation, TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import METHODS, MethodOptions
from saelab.training.parts.weights import turn_back
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


def build(
    name,
    product_dtype=torch.bfloat16,
    n_steps=STEPS,
    d_in=D_IN,
    d_out=None,
    widths=(),
    skip=False,
    **options,
):
    of_method = dataclasses.replace(getattr(MethodOptions(), name), **options)
    return Learner.build(
        DictionarySpec(name, D_SAE, K, 0),
        d_in=d_in,
        d_out=d_out,
        written_widths=widths,
        skip=skip,
        schedule=Schedule.of(n_steps),
        batch_rows=ROWS,
        options=MethodOptions(**{name: of_method}),
        optimizer=OptimizerConfig(),
        product_dtype=product_dtype,
        device=torch.device("cpu"),
    )


def finished(learner):
    if learner.method.needs_calibration:
        rows = torch.cat([batch(step).inputs for step in range(1000, 1016)])
        learner.method.calibrate(rows)
    return learner.method.to_dictionary(NORMALISATION)


def as_if_never_stopped(whole, first, second):
    """Train the first, restore its state in the second, and compare the end with the whole's."""
    cut = 2 * STEPS // 3
    for step in range(STEPS):
        whole.step(batch(step))
        if step < cut:
            first.step(batch(step))
    second.restore({key: t.detach().contiguous().clone() for key, t in first.state().items()})
    for step in range(cut, STEPS):
        second.step(batch(step))
    for key, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_a_method_restored_from_its_state_goes_on_bit_for_bit(name):
    whole, second = build(name), build(name)
    as_if_never_stopped(whole, build(name), second)
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


@pytest.mark.parametrize("name", WRITERS)
def test_a_frozen_decoder_keeps_its_bytes_while_the_rest_learns(name):
    learner = build(name, decoder="frozen")
    before = {key: p.detach().clone() for key, p in learner.method.named_parameters()}
    as_if_never_stopped(learner, *(build(name, decoder="frozen") for _ in range(2)))
    after = dict(learner.method.named_parameters())
    assert torch.equal(after.pop("weights.W_dec"), before["weights.W_dec"])
    assert all(bool((p != before[key]).any()) for key, p in after.items())


@pytest.mark.parametrize("name", WRITERS)
def test_a_soft_frozen_decoder_stays_within_its_bound(name):
    settings = {"decoder": "soft-frozen", "decoder_cosine": 0.95, "learning_rate": 0.01}
    learner = build(name, **settings)
    start = learner.method.weights.W_dec.detach().double().clone()
    as_if_never_stopped(learner, *(build(name, **settings) for _ in range(2)))
    W_dec = learner.method.weights.W_dec.detach().double()
    cosine = torch.nn.functional.cosine_similarity(W_dec, start)
    assert 0.95 - 1e-6 < float(cosine.min()) < 0.9501


def test_a_row_is_turned_back_to_the_nearest_direction_allowed():
    """Against the angle in the plane of both vectors, in float64."""
    torch.manual_seed(0)
    start, rows = torch.randn(50, 7), 3 * torch.randn(50, 7)
    rows[0] = 2 * start[0]
    moved = rows.clone()
    turn_back(moved, start, 0.8)
    for before, after, anchor in zip(rows.double(), moved.double(), start.double(), strict=True):
        anchor, norm = anchor / anchor.norm(), before.norm()
        angle = torch.acos((before @ anchor / norm).clamp(-1, 1))
        most = torch.acos(torch.tensor(0.8, dtype=torch.float64))
        if angle <= most:
            torch.testing.assert_close(after, before)
            continue
        aside = before / norm - torch.cos(angle) * anchor
        expected = norm * (torch.cos(most) * anchor + torch.sin(most) * aside / aside.norm())
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_a_crosscoder_holds_the_sum_of_norms_that_it_selects_by(name):
    widths = (D_IN - 5, 5)
    learner = build(name, n_steps=40, widths=widths, decoder_norm="summed")
    for step in range(40):
        learner.step(batch(step))
    parts = learner.method.weights.W_dec.detach().double().split(widths, dim=1)
    expected = parts[0].norm(dim=1) + parts[1].norm(dim=1)
    torch.testing.assert_close(learner.method.decoder_norms().double(), expected, check_dtype=False)
    if learner.method.unit_norm:
        torch.testing.assert_close(expected, torch.ones(D_SAE, dtype=torch.float64))
    rows = planted_rows(500, 77)
    error = finished(learner).error(rows)
    assert float(error.square().sum() / (rows - rows.mean(0)).square().sum()) < 1.0


def test_what_ties_its_decoder_refuses_a_control():
    for name in set(METHODS) - set(WRITERS):
        with pytest.raises(ConfigError, match="decoder = 'frozen' needs a decoder of its own"):
            build(name, decoder="frozen")


@pytest.mark.parametrize("name", WRITERS)
def test_a_skip_learns_beside_the_latents_and_is_folded_with_them(name):
    learner = build(name, product_dtype=None, n_steps=40, d_out=D_OUT, skip=True)
    for step in range(40):
        learner.step(transcoder_batch(step))
    method, batch = learner.method, transcoder_batch(99)
    assert method.weights.W_skip.abs().max() > 0.01
    if method.needs_calibration:
        rows = torch.cat([transcoder_batch(step).inputs for step in range(1000, 1016)])
        method.calibrate(rows)
    dictionary = method.to_dictionary(BOTH)
    raw = NORMALISATION.undo(batch.inputs)
    seen = WRITTEN.undo(method.weights.baseline(batch.inputs).detach())
    torch.testing.assert_close(dictionary.baseline(raw), seen, rtol=1e-4, atol=1e-4)
    if name in ("topk", "relu", "gated"):  # Others train with another selection than they save.
        expected = WRITTEN.undo(method.losses(batch).reconstruction.detach())
        torch.testing.assert_close(dictionary(raw), expected, rtol=1e-3, atol=1e-3)
    again = build(name, product_dtype=None, d_out=D_OUT, skip=True)
    again.method.begin_from(dictionary, BOTH)
    torch.testing.assert_close(
        again.method.weights.baseline(batch.inputs),
        method.weights.baseline(batch.inputs),
        rtol=1e-4,
        atol=1e-4,
    )
    with pytest.raises(ConfigError, match="give --skip"):
        build(name, d_out=D_OUT).method.begin_from(dictionary, BOTH)


def test_the_gradient_of_a_skip_is_that_of_float64():
    learner = build("topk", product_dtype=None, d_out=D_OUT, skip=True)
    for step in range(STEPS):
        learner.step(transcoder_batch(step))
    batch, method = transcoder_batch(99), learner.method
    method.zero_grad()
    method.losses(batch).losses["reconstruction"].backward()
    w = {
        name: p.detach().double().requires_grad_() for name, p in method.weights.named_parameters()
    }
    x, targets = batch.inputs.double(), batch.targets.double()
    pre = (x - w["b_in"]) @ w["encoder_rows"].T + w["b_enc"]
    top = torch.zeros_like(pre).scatter(1, pre.topk(K).indices, 1.0)
    written = (pre.relu() * top) @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T
    (targets - written).square().mean().backward()
    for name, parameter in method.weights.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), w[name].grad, rtol=1e-3, atol=1e-6)
