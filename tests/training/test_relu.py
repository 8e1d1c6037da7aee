"""The relu method against a slow dense transcription of its equations in float64."""

import pytest
import torch

from saelab.training.interface import DictionarySettings, Normalisation, TrainingBatch
from saelab.training.methods.relu import ReLU, ReLUOptions
from saelab.training.options import AuxiliaryOptions

D_IN, D_SAE, K, ROWS = 12, 64, 4, 50


def settings(**changes):
    given = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "seed": 1, "batch_rows": ROWS, "n_steps": 20}
    return DictionarySettings(**(given | {"product_dtype": None} | changes))


def batch_of(x, step=1):
    return TrainingBatch(x, x, None, step=step)


def dyadic(*shape, seed):
    """Multiples of 1/4 within ±2: exact in bfloat16, with many equal sums."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).double() / 4


def made(n_dead=0, weight=1.7, exact=False, **changes):
    """A method at a random point, with some rows at b_dec itself, and its batch."""
    options = ReLUOptions(sparsity_weight=weight, auxiliary=AuxiliaryOptions(k_aux=5, weight=0.25))
    method = ReLU(settings(**changes), options).double()
    w = method.weights
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        if exact:
            w.encoder_rows.copy_(dyadic(D_SAE, D_IN, seed=4))
            w.b_dec.copy_(dyadic(D_IN, seed=5))
            w.b_enc.copy_(dyadic(D_SAE, seed=6) - 1)
        else:
            w.encoder_rows.add_(0.3 * torch.randn(D_SAE, D_IN, generator=generator))
            w.b_dec.normal_(generator=generator)
            w.b_enc.normal_(-1.0, 0.5, generator=generator)
        w.W_dec.mul_(0.5 + torch.rand(D_SAE, 1, generator=generator))
        # A tie: these latents' pre-activation is exactly zero where x = b_dec.
        w.b_enc[:2] = 0.0
    x = (
        dyadic(ROWS, D_IN, seed=7)
        if exact
        else torch.randn(ROWS, D_IN, dtype=torch.float64, generator=generator)
    )
    x[[0, 7, ROWS - 1]] = w.b_dec.detach()
    with torch.no_grad():
        w.b_enc[2:].clamp_(max=-0.25)
    dead = torch.arange(n_dead) + 2
    method.auxiliary.dead_latents.listed[dead] = True
    return method, x, dead


def dense_loss(leaves, x, weight, dead, k_aux=5, aux_weight=0.25):
    """Dense, literal: ‖x − x̂‖² + λ Σ f ‖W_dec‖ over rows · d_in, and AuxK without b_enc."""
    W_enc, b_enc, W_dec, b_dec = leaves
    codes = ((x - b_dec) @ W_enc + b_enc).relu()
    error = x - (codes @ W_dec + b_dec)
    penalty = (codes * W_dec.norm(dim=1)).sum()
    total = (error.square().sum() + weight * penalty) / x.numel()
    if len(dead):
        lifted = (x - b_dec) @ W_enc[:, dead] + b_enc[dead] - b_enc[dead].detach()
        top = lifted.topk(min(k_aux, len(dead)), dim=1)
        aux_codes = torch.zeros_like(lifted).scatter(1, top.indices, top.values.relu())
        held = error.detach()
        residual = held - aux_codes @ W_dec[dead]
        scale = (held - held.mean(0)).square().sum()
        total = total + aux_weight * residual.square().sum() / scale
    return total, codes, x - error


@pytest.mark.parametrize("n_dead", [0, 3, 40])
def test_losses_and_all_gradients_equal_the_dense_transcription(n_dead):
    method, x, dead = made(n_dead)
    output = method.losses(batch_of(x))
    total = sum(output.losses.values())
    total.backward()
    w = method.weights
    leaves = [p.detach().clone().requires_grad_() for p in (w.W_enc, w.b_enc, w.W_dec, w.b_dec)]
    expected, codes, reconstruction = dense_loss(leaves, x, 1.7, dead)
    expected.backward()
    assert (codes[[0, 7, ROWS - 1]] == 0).all()  # rows without any active latent
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.reconstruction, reconstruction)
    torch.testing.assert_close(output.codes.to_dense(), codes * leaves[2].norm(dim=1))
    found = (w.encoder_rows.grad.T, w.b_enc.grad, w.W_dec.grad, w.b_dec.grad)
    for gradient, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-12)
    assert ("auxk" in output.losses) == (n_dead > 0)


def test_ties_at_zero_and_the_bfloat16_product_change_nothing_where_numbers_are_exact():
    results = []
    for dtype in (None, torch.bfloat16):
        method, x, _ = made(exact=True, product_dtype=dtype)
        output = method.losses(batch_of(x))
        sum(output.losses.values()).backward()
        results.append((output.codes.to_dense(), method.weights.encoder_rows.grad))
    pre = (x - method.weights.b_dec) @ method.weights.W_enc + method.weights.b_enc
    assert (pre == 0).sum() >= 10
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_bfloat16_product_changes_little():
    exact, x, _ = made()
    fast, _, _ = made(product_dtype=torch.bfloat16)
    one, other = exact.losses(batch_of(x)).losses, fast.losses(batch_of(x)).losses
    for name in one:
        assert abs(float((one[name] - other[name]).detach())) < 5e-3 * float(one[name].detach())


def test_the_saved_dictionary_has_unit_rows_and_the_codes_of_training():
    method, _, _ = made()
    x = torch.randn(40, D_IN, dtype=torch.float64) * 7 + 30
    normalisation = Normalisation.of(x.mean(0), float((x - x.mean(0)).square().sum(1).mean()))
    inside = method.losses(batch_of(normalisation.apply(x)))
    dictionary = method.to_dictionary(normalisation)
    assert dictionary.architecture == "relu"
    torch.testing.assert_close(
        dictionary.encode_dense(x), inside.codes.to_dense() / normalisation.scale
    )
    torch.testing.assert_close(
        dictionary(x), inside.reconstruction / normalisation.scale + normalisation.mean
    )
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(D_SAE, dtype=torch.float64))


def test_a_latent_without_a_decoder_is_saved_as_silent():
    method, _, _ = made()
    with torch.no_grad():
        method.weights.W_dec[3] = 0.0
    dictionary = method.to_dictionary(Normalisation(torch.zeros(D_IN, dtype=torch.float64), 1.0))
    assert all(torch.isfinite(tensor).all() for tensor in dictionary.tensors().values())
    x = torch.randn(300, D_IN, dtype=torch.float64)
    assert not dictionary.encode(x).fired()[3]


def test_the_first_batch_starts_at_a_multiple_of_k_and_later_ones_keep_the_biases():
    method = ReLU(settings(), ReLUOptions(start_l0_factor=3.0))
    x = torch.randn(500, D_IN)
    first = method.losses(batch_of(x, step=0))
    assert abs(float(first.codes.l0().double().mean()) - 3 * K) < 0.1
    bias = method.weights.b_enc.detach().clone()
    assert (bias == bias[0]).all() and bias[0] < 0
    torch.testing.assert_close(method.controller.weight(), -2 * bias[0])
    method.losses(batch_of(torch.randn(500, D_IN) * 3, step=1))
    assert torch.equal(method.weights.b_enc, bias)


def test_the_auxiliary_loss_moves_encoder_bias_and_decoder_of_dead_latents():
    method, x, dead = made(n_dead=6)
    with torch.no_grad():
        method.weights.b_enc[dead] = -50.0
    output = method.losses(batch_of(x))
    assert not output.codes.fired()[dead].any()
    output.losses["auxk"].backward()
    w = method.weights
    for gradient in (w.encoder_rows.grad, w.W_dec.grad, w.b_enc.grad.unsqueeze(1)):
        assert gradient[dead].any()
