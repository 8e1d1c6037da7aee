"""The jumprelu method against a slow dense transcription of its equations in float64."""

import pytest
import torch

from saelab.errors import ConfigError
from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import DictionarySettings, Normalisation, TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods.jumprelu import JumpReLU, JumpReLUOptions, jump, step
from saelab.training.options import AuxiliaryOptions
from saelab.training.schedule import Schedule

D_IN, D_SAE, K, ROWS, BANDWIDTH, RATE = 12, 64, 4, 50, 0.5, 16.0


def settings(**changes):
    given = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "seed": 1, "batch_rows": ROWS, "n_steps": 20}
    return DictionarySettings(**(given | {"product_dtype": None} | changes))


def batch_of(x, at=1):
    return TrainingBatch(x, x, None, step=at)


def dyadic(*shape, seed, unit=0.25):
    """Multiples of a power of two: exact in bfloat16, with many equal sums."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).double() * unit


def made(n_dead=0, weight=1.7, exact=False, penalty="l0", **changes):
    """A method at a random point, with some rows at b_dec itself, and its batch."""
    options = JumpReLUOptions(
        sparsity_weight=weight,
        penalty=penalty,
        bandwidth=BANDWIDTH,
        threshold_rate=RATE,
        auxiliary=AuxiliaryOptions(k_aux=5, weight=0.25),
    )
    method = JumpReLU(settings(**changes), options).double()
    w, generator = method.weights, torch.Generator().manual_seed(3)
    with torch.no_grad():
        w.b_enc.copy_(dyadic(D_SAE, seed=6, unit=0.125) - 1)
        # From below half the bandwidth, zero included, to where little fires.
        thresholds = (torch.arange(D_SAE) % 8).double() / 4
        method.threshold_over_rate.copy_(thresholds / RATE)
        if exact:
            w.encoder_rows.copy_(dyadic(D_SAE, D_IN, seed=4))
            w.b_dec.copy_(dyadic(D_IN, seed=5))
        else:
            w.encoder_rows.add_(0.3 * torch.randn(D_SAE, D_IN, generator=generator))
            w.b_dec.normal_(generator=generator)
    random = torch.randn(ROWS, D_IN, dtype=torch.float64, generator=generator)
    x = dyadic(ROWS, D_IN, seed=7) if exact else random
    x[[0, 7, ROWS - 1]] = w.b_dec.detach()
    dead = torch.arange(n_dead) + 2
    method.auxiliary.dead_latents.listed[dead] = True
    return method, x, dead


def dense_loss(leaves, x, weight, dead, penalty="l0", k_aux=5, aux_weight=0.25):
    """Dense and literal; the kernel's gradients are those of terms that are zero in value."""
    W_enc, b_enc, W_dec, b_dec, theta = leaves
    pre = (x - b_dec) @ W_enc + b_enc
    held_pre, held_theta = pre.detach(), theta.detach()
    active = (held_pre > held_theta) & (held_pre > 0)
    inside = ((held_pre - held_theta).abs() < BANDWIDTH / 2) & (held_pre > 0)
    moved = -(theta - held_theta) * inside / BANDWIDTH
    codes = pre * active + held_theta * moved
    l0 = active + moved
    error = x - (codes @ W_dec + b_dec)
    counted = l0.sum() if penalty == "l0" else codes.tanh().sum()
    total = (error.square().sum() + weight * counted) / x.numel()
    if len(dead):
        top = pre[:, dead].topk(min(k_aux, len(dead)), dim=1)
        aux_codes = torch.zeros_like(pre[:, dead]).scatter(1, top.indices, top.values.relu())
        held = error.detach()
        residual = held - aux_codes @ W_dec[dead]
        scale = (held - held.mean(0)).square().sum()
        total = total + aux_weight * residual.square().sum() / scale
    return total, pre, codes, x - error


def compare(method, x, dead, penalty):
    output = method.losses(batch_of(x))
    total = sum(output.losses.values())
    total.backward()
    w = method.weights
    of = (w.W_enc, w.b_enc, w.W_dec, w.b_dec, method.threshold())
    leaves = [p.detach().clone().requires_grad_() for p in of]
    expected, pre, codes, reconstruction = dense_loss(leaves, x, 1.7, dead, penalty)
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.reconstruction, reconstruction)
    torch.testing.assert_close(output.codes.to_dense(), codes.detach())
    found = (
        w.encoder_rows.grad.T,
        w.b_enc.grad,
        w.W_dec.grad,
        w.b_dec.grad,
        method.threshold_over_rate.grad / RATE,
    )
    for gradient, leaf in zip(found, leaves, strict=True):
        assert gradient.any()
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-12)
    return output, pre.detach(), leaves[-1].detach()


@pytest.mark.parametrize("penalty", ["l0", "tanh"])
@pytest.mark.parametrize("n_dead", [0, 3, 40])
def test_losses_and_all_gradients_equal_the_dense_transcription(n_dead, penalty):
    method, x, dead = made(n_dead, penalty=penalty)
    output, pre, thresholds = compare(method, x, dead, penalty)
    assert (pre[[0, 7, ROWS - 1]] <= thresholds).all()  # rows without any active latent
    below = (output.codes.value == 0).sum()
    assert 0 < below < output.codes.value.shape[0]
    assert ("auxk" in output.losses) == (n_dead > 0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("penalty", ["l0", "tanh"])
def test_ties_at_the_threshold_and_at_the_kernels_edges(penalty, dtype):
    """Numbers that are exact in bfloat16, so that p = θ and |p − θ| = ε/2 really occur."""
    method, x, dead = made(exact=True, penalty=penalty, product_dtype=dtype)
    output, pre, thresholds = compare(method, x, dead, penalty)
    for offset in (0.0, BANDWIDTH / 2, -BANDWIDTH / 2):
        assert ((pre - thresholds == offset) & (pre > 0)).sum() >= 5
    assert not output.codes.to_dense()[(pre == thresholds) | (pre <= 0)].any()


def test_the_bfloat16_product_changes_little():
    exact, x, _ = made()
    fast, _, _ = made(product_dtype=torch.bfloat16)
    one, other = exact.losses(batch_of(x)).losses, fast.losses(batch_of(x)).losses
    for name in one:
        assert abs(float((one[name] - other[name]).detach())) < 1e-2 * float(one[name].detach())


def test_the_kernels_gradients_are_those_of_the_paper():
    pre = torch.tensor([0.5, 1.0, 1.0, 1.2, 1.26, 0.76, 3.0], requires_grad=True)
    theta = torch.tensor([1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 2.0], requires_grad=True)
    upstream = torch.arange(1.0, 8.0)
    value = jump(pre, theta, 0.5)
    assert value.tolist() == pytest.approx([0, 0, 1.0, 1.2, 1.26, 0, 3.0])
    value.backward(upstream)
    assert pre.grad.tolist() == [0, 0, 3, 4, 5, 0, 7]
    assert theta.grad.tolist() == pytest.approx([0, -4.0, -5.4, -8.0, 0, -12.0, 0])
    pre.grad = theta.grad = None
    counted = step(pre, theta, 0.5)
    assert counted.tolist() == [0, 0, 1, 1, 1, 0, 1]
    counted.backward(upstream)
    assert pre.grad is None
    assert theta.grad.tolist() == [0, -4, -6, -8, 0, -12, 0]


def test_pairs_between_kernel_and_threshold_have_not_fired():
    method, x, _ = made()
    with torch.no_grad():
        method.threshold_over_rate.fill_(100.0 / RATE)
        method.weights.b_enc.fill_(99.9)
        method.weights.encoder_rows.mul_(1e-3)
    batch = batch_of(x)
    output = method.losses(batch)
    assert output.codes.latent.shape[0] == ROWS * D_SAE and not output.codes.fired().any()
    method.after_update(batch, output)
    assert (method.auxiliary.dead_latents.tokens_since_fired == ROWS).all()


def test_the_saved_dictionary_has_the_codes_of_training():
    method, _, _ = made()
    x = torch.randn(40, D_IN, dtype=torch.float64) * 7 + 30
    normalisation = Normalisation.of(x.mean(0), float((x - x.mean(0)).square().sum(1).mean()))
    inside = method.losses(batch_of(normalisation.apply(x)))
    dictionary = method.to_dictionary(normalisation)
    assert dictionary.architecture == "jumprelu"
    torch.testing.assert_close(
        dictionary.encode_dense(x), inside.codes.to_dense() / normalisation.scale
    )
    torch.testing.assert_close(
        dictionary(x), inside.reconstruction / normalisation.scale + normalisation.mean
    )


def test_thresholds_move_both_ways_stay_above_zero_and_are_reported():
    """Under Adam a threshold near zero must be able to grow, which a log-threshold hardly can."""
    options = JumpReLUOptions(sparsity_weight=0.0)
    learner = Learner(
        DictionarySpec("jumprelu", D_SAE, K, 0),
        JumpReLU(settings(n_steps=40), options),
        OptimizerConfig(decay_fraction=0.0),
        Schedule.of(40),
    )
    method, medians = learner.method, []
    generator = torch.Generator().manual_seed(0)
    for at in range(40):
        if at == 20:
            method.controller.fixed = 50.0
        learner.step(batch_of(torch.randn(64, D_IN, generator=generator), at))
        assert (method.threshold() >= 0).all()
        torch.testing.assert_close(method.weights.W_dec.norm(dim=1), torch.ones(D_SAE))
        medians.append(method.metrics()["threshold_q50"])
    assert medians[19] < 0.6 * medians[0] and medians[39] > medians[19] + 0.2
    figures = method.metrics()
    assert figures["threshold_q05"] <= figures["threshold_q50"] <= figures["threshold_q95"]


def test_the_first_batch_starts_at_a_multiple_of_k():
    method = JumpReLU(settings(), JumpReLUOptions(start_l0_factor=3.0))
    output = method.losses(batch_of(torch.randn(500, D_IN), at=0))
    assert abs(float(output.codes.l0().double().mean()) - 3 * K) < 0.1
    threshold = method.threshold()[0].detach()
    torch.testing.assert_close(method.controller.weight(), (2 * threshold).square())


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError) as caught:
        JumpReLUOptions(bandwidth=0.0, threshold_rate=-1.0, tanh_scale=float("nan"))
    for name in ("bandwidth is 0.0", "threshold_rate is -1.0", "tanh_scale is nan"):
        assert f"{name}; it must be at least 1e-06, finite" in str(caught.value)


@pytest.mark.parametrize("weight", [None, 1.7])
def test_thresholds_end_where_l0_is_k_by_one_factor_unless_the_weight_was_given(weight):
    method, x, _ = made(weight=weight)
    before = method.threshold().detach().clone()
    method.calibrate(x)
    after = method.threshold().detach()
    if weight is not None:
        assert torch.equal(after, before)
        return
    dictionary = method.to_dictionary(Normalisation(torch.zeros(D_IN, dtype=torch.float64), 1.0))
    l0 = dictionary.encode(x).l0().double().mean()
    # A gate keeps what is above its threshold, so the last pair of all is left out.
    assert float(l0) == pytest.approx(K, abs=2 / ROWS)
    factors = after[before > 0] / before[before > 0]
    torch.testing.assert_close(factors, factors[:1].expand_as(factors))
    assert not torch.equal(after, before)
