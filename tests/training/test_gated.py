"""The gated method against a slow dense transcription of its equations in float64."""

import pytest
import torch

from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import DictionarySettings, Normalisation, TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods.gated import Gated, GatedOptions
from saelab.training.options import AuxiliaryOptions
from saelab.training.parts.weights import normalise_rows
from saelab.training.schedule import Schedule

D_IN, D_SAE, K, ROWS = 12, 64, 4, 50


def settings(**changes):
    given = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "seed": 1, "batch_rows": ROWS, "n_steps": 20}
    return DictionarySettings(**(given | {"product_dtype": None} | changes))


def batch_of(x, step=1):
    return TrainingBatch(x, x, None, step=step)


def made(n_dead=0, weight=1.7, **changes):
    """A method at a random point, with some rows at b_dec itself, and its batch."""
    options = GatedOptions(sparsity_weight=weight, auxiliary=AuxiliaryOptions(k_aux=5, weight=0.25))
    method = Gated(settings(**changes), options).double()
    w, generator = method.weights, torch.Generator().manual_seed(3)
    with torch.no_grad():
        w.encoder_rows.add_(0.3 * torch.randn(D_SAE, D_IN, generator=generator))
        w.b_dec.normal_(generator=generator)
        w.b_enc.normal_(-1.0, 0.5, generator=generator).clamp_(max=-0.25)
        # Ties: where x = b_dec the gates of these latents are at exactly zero.
        w.b_enc[:2] = 0.0
        method.r_mag.normal_(0, 0.3, generator=generator)
        method.b_mag.normal_(-0.8, 0.7, generator=generator)
    x = torch.randn(ROWS, D_IN, dtype=torch.float64, generator=generator)
    x[[0, 7, ROWS - 1]] = w.b_dec.detach()
    dead = torch.arange(n_dead) + 2
    method.auxiliary.dead_latents.listed[dead] = True
    return method, x, dead


def dense_loss(leaves, x, weight, dead, k_aux=5, aux_weight=0.25):
    """Dense, literal: the three terms over rows · d_in, and AuxK without b_gate."""
    W_enc, b_gate, W_dec, b_dec, r_mag, b_mag = leaves
    centred = x - b_dec
    gate = centred @ W_enc + b_gate
    magnitude = centred @ (W_enc * r_mag.exp()) + b_mag
    codes = (gate > 0) * magnitude.relu()
    error = x - (codes @ W_dec + b_dec)
    by_gate = gate.relu() @ W_dec.detach() + b_dec.detach()
    total = error.square().sum() + weight * gate.relu().sum() + (x - by_gate).square().sum()
    total = total / x.numel()
    if len(dead):
        lifted = centred @ W_enc[:, dead] + b_gate[dead] - b_gate[dead].detach()
        top = lifted.topk(min(k_aux, len(dead)), dim=1)
        aux_codes = torch.zeros_like(lifted).scatter(1, top.indices, top.values.relu())
        held = error.detach()
        residual = held - aux_codes @ W_dec[dead]
        scale = (held - held.mean(0)).square().sum()
        total = total + aux_weight * residual.square().sum() / scale
    return total, gate, codes, x - error


def parameters(method):
    w = method.weights
    return w.W_enc, w.b_enc, w.W_dec, w.b_dec, method.r_mag, method.b_mag


@pytest.mark.parametrize("n_dead", [0, 3, 40])
def test_losses_and_all_gradients_equal_the_dense_transcription(n_dead):
    method, x, dead = made(n_dead)
    output = method.losses(batch_of(x))
    total = sum(output.losses.values())
    total.backward()
    leaves = [p.detach().clone().requires_grad_() for p in parameters(method)]
    expected, gate, codes, reconstruction = dense_loss(leaves, x, 1.7, dead)
    expected.backward()
    assert (gate[[0, 7, ROWS - 1]] <= 0).all()  # rows without any open gate
    assert (gate == 0).sum() >= 6
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.reconstruction, reconstruction)
    torch.testing.assert_close(output.codes.to_dense(), codes)
    found = [p.grad for p in parameters(method)[1:]]
    torch.testing.assert_close(
        method.weights.encoder_rows.grad.T, leaves[0].grad, rtol=1e-10, atol=1e-12
    )
    for gradient, leaf in zip(found, leaves[1:], strict=True):
        assert gradient.any()
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-12)
    assert ("auxk" in output.losses) == (n_dead > 0)
    silent = ((gate > 0) & (codes == 0)).sum() / (gate > 0).sum()
    assert silent > 0
    assert method.metrics()["open_gates_without_magnitude"] == pytest.approx(float(silent), 1e-6)


def test_the_gates_reconstruction_does_not_move_the_decoder():
    method, x, _ = made()
    method.losses(batch_of(x)).losses["gate_reconstruction"].backward()
    w = method.weights
    assert w.W_dec.grad is None
    assert w.encoder_rows.grad.any() and w.b_enc.grad.any()
    # b_dec moves only as what is subtracted from the input.
    torch.testing.assert_close(w.b_dec.grad, -(w.W_enc @ w.b_enc.grad))


def test_an_open_gate_without_magnitude_has_not_fired():
    method, x, _ = made()
    with torch.no_grad():
        method.b_mag.fill_(-100.0)
    batch = batch_of(x)
    output = method.losses(batch)
    assert output.codes.latent.shape[0] > 0 and not output.codes.fired().any()
    method.after_update(batch, output)
    assert (method.auxiliary.dead_latents.tokens_since_fired == ROWS).all()


def test_the_bfloat16_product_changes_little():
    exact, x, _ = made()
    fast, _, _ = made(product_dtype=torch.bfloat16)
    one, other = exact.losses(batch_of(x)).losses, fast.losses(batch_of(x)).losses
    for name in one:
        assert abs(float((one[name] - other[name]).detach())) < 5e-3 * float(one[name].detach())


def test_the_saved_dictionary_has_the_codes_of_training():
    method, _, _ = made()
    x = torch.randn(40, D_IN, dtype=torch.float64) * 7 + 30
    normalisation = Normalisation.of(x.mean(0), float((x - x.mean(0)).square().sum(1).mean()))
    inside = method.losses(batch_of(normalisation.apply(x)))
    dictionary = method.to_dictionary(normalisation)
    assert dictionary.architecture == "gated"
    torch.testing.assert_close(
        dictionary.encode_dense(x), inside.codes.to_dense() / normalisation.scale
    )
    torch.testing.assert_close(
        dictionary(x), inside.reconstruction / normalisation.scale + normalisation.mean
    )


def test_the_first_batch_starts_at_a_multiple_of_k():
    method = Gated(settings(), GatedOptions(start_l0_factor=3.0))
    output = method.losses(batch_of(torch.randn(500, D_IN), step=0))
    assert abs(float(output.codes.l0().double().mean()) - 3 * K) < 0.1
    torch.testing.assert_close(method.controller.weight(), -4 * method.weights.b_enc[0].detach())


def test_decoder_rows_keep_norm_one_and_their_gradient_no_radial_part():
    learner = Learner(
        DictionarySpec("gated", D_SAE, K, 0),
        Gated(settings(), GatedOptions()),
        OptimizerConfig(),
        Schedule.of(5),
    )
    for step in range(5):
        learner.step(batch_of(torch.randn(64, D_IN), step))
        w = learner.method.weights
        torch.testing.assert_close(w.W_dec.norm(dim=1), torch.ones(D_SAE))
    method, x, _ = made()
    normalise_rows(method.weights.W_dec)
    sum(method.losses(batch_of(x)).losses.values()).backward()
    method.adjust_gradients()
    along = (method.weights.W_dec.grad * method.weights.W_dec).sum(1)
    assert along.abs().max() < 1e-12
