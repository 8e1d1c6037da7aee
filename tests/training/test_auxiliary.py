"""The auxiliary losses on any method: aux-Zipf's densities, ranks, targets and gradients."""

import pytest
import torch

from saelab.errors import ConfigError
from saelab.sparse import SparseCodes
from saelab.stats.zipf import zipf_shares
from saelab.training.options import AuxiliaryOptions
from saelab.training.parts.auxiliary import Auxiliary, Underused
from saelab.training.parts.weights import AutoencoderWeights

D_IN, D_SAE, K = 6, 20, 3


def codes_of(mask):
    return SparseCodes.from_mask(mask.float(), mask)


def test_density_is_the_bias_corrected_running_mean_and_targets_follow_its_rank():
    options = AuxiliaryOptions(
        kind="zipf", density_horizon_tokens=400, zipf_exponent=0.8, zipf_offset=2.0
    )
    underused = Underused(D_SAE, K, options)
    generator = torch.Generator().manual_seed(0)
    rates = torch.linspace(0.02, 0.6, D_SAE)
    mean, weight, decay = torch.zeros(D_SAE).double(), 0.0, 1 - 100 / 400
    for step in range(11):
        mask = torch.rand(100, D_SAE, generator=generator) < rates
        underused.update(codes_of(mask), step=step)
        mean = decay * mean + (1 - decay) * mask.double().mean(0)
        weight = decay * weight + (1 - decay)
    torch.testing.assert_close(underused.density().double(), mean / weight, rtol=1e-5, atol=1e-7)
    order = torch.argsort(mean, descending=True)
    shares = K * zipf_shares(D_SAE, exponent=0.8, offset=2.0).clamp_max(0.5 / K)
    torch.testing.assert_close(underused.targets()[order].double(), shares, rtol=1e-5, atol=1e-7)


def test_underused_latents_are_listed_at_refreshes_by_share_of_their_target():
    underused = Underused(D_SAE, K, AuxiliaryOptions(kind="zipf", underused_below=0.5))
    mask = torch.ones(50, D_SAE, dtype=torch.bool)
    mask[:, 7] = False
    mask[1:, 8] = False
    for step in range(8):
        assert not len(underused.listed_latents())
        underused.update(codes_of(mask), step=step)
    assert underused.listed_latents().tolist() == [7, 8]
    metrics = underused.metrics()
    assert metrics["underused_fraction"] == pytest.approx(2 / D_SAE)
    assert metrics["zipf_log10_gap"] > 0


def test_a_rare_latent_is_left_alone_unless_it_hardly_ever_fires():
    """Targets are all 0.15; half of them once listed the rare ones of a healthy tail too."""
    underused = Underused(D_SAE, K, AuxiliaryOptions(kind="zipf", zipf_exponent=0.0))
    mask = torch.zeros(400, D_SAE, dtype=torch.bool)
    mask[:60] = True
    mask[15:, 7] = mask[3:, 8] = mask[:, 9] = False
    for step in range(8):
        underused.update(codes_of(mask), step=step)
    torch.testing.assert_close(underused.targets(), torch.full((D_SAE,), 0.15))
    assert underused.listed_latents().tolist() == [8, 9]


@pytest.mark.parametrize("kind", ["auxk", "zipf"])
@pytest.mark.parametrize("n_listed", [0, 2, 15])
def test_loss_and_gradients_equal_a_dense_transcription(kind, n_listed):
    weights = AutoencoderWeights(D_IN, D_SAE, seed=0).double()
    options = AuxiliaryOptions(kind=kind, k_aux=4, weight=0.3)
    auxiliary = Auxiliary(D_SAE, K, options, None).double()
    latents = torch.arange(n_listed) + 3
    (auxiliary.underused or auxiliary.dead_latents).listed[latents] = True
    x = torch.randn(30, D_IN, dtype=torch.float64)
    error = torch.randn(30, D_IN, dtype=torch.float64, requires_grad=True)
    losses = auxiliary.loss(weights, x, error)
    if not n_listed:
        assert losses == {}
        return
    assert list(losses) == ["auxk" if kind == "auxk" else "aux_zipf"]
    (loss,) = losses.values()
    loss.backward()
    assert error.grad is None

    leaves = [
        t.detach().clone().requires_grad_()
        for t in (weights.W_enc, weights.b_enc, weights.W_dec, weights.b_dec)
    ]
    W_enc, b_enc, W_dec, b_dec = leaves
    pre = ((x - b_dec) @ W_enc + b_enc)[:, latents]
    top = pre.topk(min(4, n_listed), dim=1)
    kept = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    held = error.detach()
    dense = 0.3 * (held - kept @ W_dec[latents]).square().sum()
    dense = dense / (held - held.mean(0)).square().sum()
    dense.backward()
    torch.testing.assert_close(loss.detach(), dense.detach())
    found = (weights.encoder_rows.grad.T, weights.b_enc.grad, weights.W_dec.grad)
    for mine, leaf in zip((*found, weights.b_dec.grad), leaves, strict=True):
        torch.testing.assert_close(mine, leaf.grad, rtol=1e-9, atol=1e-12)


def test_settings_that_make_no_sense_are_named_together():
    with pytest.raises(ConfigError) as refused:
        AuxiliaryOptions(weight=-1.0, k_aux=0, underused_below=2.0)
    for name in ("weight", "k_aux", "underused_below"):
        assert f"auxiliary.{name}" in str(refused.value)
