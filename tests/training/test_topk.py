"""The topk method against a slow dense transcription of its equations in float64."""

import pytest
import torch

from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import DictionarySettings, Normalisation, TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import MethodOptions
from saelab.training.methods.topk import TopK, TopKOptions
from saelab.training.options import AuxiliaryOptions
from saelab.training.schedule import Schedule

D_IN, D_SAE, K = 12, 64, 4


def settings(**changes):
    given = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "seed": 1, "batch_rows": 50, "n_steps": 20}
    return DictionarySettings(**(given | {"product_dtype": None} | changes))


def batch_of(x, step=0):
    return TrainingBatch(x, x, None, step=step)


def dense_losses(weights, x, k, dead, k_aux, weight):
    """Dense, literal: reconstruction over variance (1 after normalisation), and AuxK."""
    W_enc, b_enc, W_dec, b_dec = weights
    pre = (x - b_dec) @ W_enc + b_enc
    top = pre.topk(k, dim=1)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    error = x - (codes @ W_dec + b_dec)
    total = error.square().mean()
    if not len(dead):
        return total
    dead_pre = pre[:, dead]
    top = dead_pre.topk(min(k_aux, len(dead)), dim=1)
    aux_codes = torch.zeros_like(dead_pre).scatter(1, top.indices, top.values.relu())
    held = error.detach()
    residual = held - aux_codes @ W_dec[dead]
    return total + weight * residual.square().sum() / (held - held.mean(0)).square().sum()


@pytest.mark.parametrize("n_dead", [0, 3, 40])
def test_losses_and_all_gradients_equal_the_dense_transcription(n_dead):
    options = TopKOptions(auxiliary=AuxiliaryOptions(k_aux=5, weight=0.25))
    method = TopK(settings(), options).double()
    dead = torch.arange(n_dead) + 2
    method.auxiliary.dead_latents.listed[dead] = True
    x = torch.randn(50, D_IN, dtype=torch.float64)
    sum(method.losses(batch_of(x)).losses.values()).backward()

    w = method.weights
    leaves = [p.detach().clone().requires_grad_() for p in (w.W_enc, w.b_enc, w.W_dec, w.b_dec)]
    dense_losses(leaves, x, K, dead, 5, 0.25).backward()
    found = (w.encoder_rows.grad.T, w.b_enc.grad, w.W_dec.grad, w.b_dec.grad)
    for gradient, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-12)


def test_auxk_of_an_error_without_variance_is_zero_with_finite_gradients():
    from saelab.sparse import SparseCodes
    from saelab.training.parts.auxiliary import residual_loss

    weights = TopK(settings(), TopKOptions()).weights
    x = torch.randn(3, D_IN)
    selected = SparseCodes.from_fixed_k(torch.tensor([[1], [2], [3]]), torch.ones(3, 1), D_SAE)
    loss = residual_loss(weights, x, torch.full((3, D_IN), 0.5), selected, weights.b_enc)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert (
        torch.isfinite(weights.W_dec.grad).all() and torch.isfinite(weights.encoder_rows.grad).all()
    )


def test_auxk_moves_the_encoder_of_dead_latents():
    method = TopK(settings(), TopKOptions())
    method.auxiliary.dead_latents.listed[5:9] = True
    with torch.no_grad():
        method.weights.b_enc[5:9] = -0.5
    output = method.losses(batch_of(torch.randn(64, D_IN)))
    assert not output.codes.fired()[5:9].all()
    output.losses["auxk"].backward()
    weights = method.weights
    assert weights.encoder_rows.grad[5:9].any() and weights.W_dec.grad[5:9].any()


def test_training_curve_is_that_of_a_dense_float64_step():
    """Twenty steps of the whole learner in float32 beside dense float64 with its own Adam."""
    config = OptimizerConfig(learning_rate=1e-3, clip_norm=0.1, decay_fraction=0.2)
    learner = Learner.build(
        DictionarySpec("topk", D_SAE, K, 0),
        d_in=D_IN,
        schedule=Schedule.of(20),
        batch_rows=128,
        options=MethodOptions(),
        optimizer=config,
        product_dtype=None,
        device=torch.device("cpu"),
    )
    w = learner.method.weights
    leaves = [
        p.detach().double().clone().requires_grad_() for p in (w.W_enc, w.b_enc, w.W_dec, w.b_dec)
    ]
    adam = torch.optim.Adam(leaves, betas=(config.beta1, config.beta2), foreach=False)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        x = torch.randn(128, D_IN, generator=generator)
        output = learner.step(batch_of(x, step))
        adam.param_groups[0]["lr"] = 1e-3 * min(1.0, (20 - step) / 4)
        adam.zero_grad()
        loss = dense_losses(leaves, x.double(), K, [], 0, 0)
        loss.backward()
        W_dec = leaves[2]
        W_dec.grad -= (W_dec.grad * W_dec.detach()).sum(1, keepdim=True) * W_dec.detach()
        torch.nn.utils.clip_grad_norm_(leaves, 0.1)
        adam.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        assert abs(float(output.losses["reconstruction"].detach()) - float(loss.detach())) < 2e-4
    for parameter, leaf in zip((w.W_enc, w.b_enc, w.W_dec, w.b_dec), leaves, strict=True):
        torch.testing.assert_close(parameter.double(), leaf, rtol=1e-2, atol=1e-3)


def test_a_selected_latent_with_value_zero_has_not_fired():
    method = TopK(settings(), TopKOptions(auxiliary=AuxiliaryOptions(dead_after_tokens=1)))
    with torch.no_grad():
        method.weights.b_enc.fill_(-100.0)
    batch = batch_of(torch.randn(10, D_IN))
    output = method.losses(batch)
    assert output.codes.latent.shape[0] == 10 * K
    method.after_update(batch, output)
    assert (method.auxiliary.dead_latents.tokens_since_fired == 10).all()
    assert method.auxiliary.dead_latents.dead().all()


def test_dead_latents_are_counted_in_tokens_and_listed_at_refreshes():
    method = TopK(settings(), TopKOptions(auxiliary=AuxiliaryOptions(dead_after_tokens=700)))
    with torch.no_grad():
        method.weights.b_enc[:10] = -100.0
    for step in range(8):
        batch = batch_of(torch.randn(100, D_IN), step)
        method.after_update(batch, method.losses(batch))
        if step < 7:
            assert not len(method.auxiliary.dead_latents.listed_latents())
    assert method.auxiliary.dead_latents.listed_latents()[:10].tolist() == list(range(10))


def test_decoder_rows_keep_norm_one_and_their_gradient_no_radial_part():
    learner = Learner.build(
        DictionarySpec("topk", D_SAE, K, 0),
        d_in=D_IN,
        schedule=Schedule.of(5),
        batch_rows=64,
        options=MethodOptions(),
        optimizer=OptimizerConfig(),
        product_dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    for step in range(5):
        learner.step(batch_of(torch.randn(64, D_IN), step))
        norms = learner.method.weights.W_dec.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(D_SAE))


def test_normalisation_is_folded_exactly():
    method = TopK(settings(), TopKOptions()).double()
    with torch.no_grad():
        method.weights.b_enc.normal_()
        method.weights.b_dec.normal_()
    x = torch.randn(40, D_IN, dtype=torch.float64) * 7 + 30
    normalisation = Normalisation.of(x.mean(0), float((x - x.mean(0)).square().sum(1).mean()))
    normal = normalisation.apply(x)
    assert abs(float(normal.square().mean()) - 1) < 1e-9
    inside = method.losses(batch_of(normal))
    dictionary = method.to_dictionary(normalisation)
    torch.testing.assert_close(
        dictionary.encode_dense(x), inside.codes.to_dense() / normalisation.scale
    )
    torch.testing.assert_close(
        dictionary(x), inside.reconstruction / normalisation.scale + normalisation.mean
    )
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(D_SAE, dtype=torch.float64))


def test_product_in_bfloat16_changes_little():
    x = torch.randn(256, D_IN)
    exact = TopK(settings(), TopKOptions()).losses(batch_of(x)).losses["reconstruction"]
    fast = TopK(settings(product_dtype=torch.bfloat16), TopKOptions()).losses(batch_of(x))
    assert abs(float(exact.detach()) - float(fast.losses["reconstruction"].detach())) < 5e-3
