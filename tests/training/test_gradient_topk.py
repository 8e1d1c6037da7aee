"""Gradient TopK: its selection literally, β = 0 as TopK bit for bit, scales and refusals."""

import dataclasses

import pytest
import torch

from saelab.errors import ActivationError, ConfigError
from saelab.training.config import DictionarySpec, OptimizerConfig, TrainConfig
from saelab.training.interface import DictionarySettings, TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import MethodOptions
from saelab.training.methods.gradient_topk import GradientTopK, GradientTopKOptions
from saelab.training.methods.topk import TopK, TopKOptions
from saelab.training.run import train
from saelab.training.schedule import Schedule

D_IN, D_SAE, K, ROWS = 16, 96, 4, 64


def settings(**changes):
    given = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "seed": 1, "batch_rows": ROWS, "n_steps": 40}
    return DictionarySettings(**(given | {"product_dtype": None} | changes))


def batch_of(step, dtype=torch.float32, scale=1e-4):
    generator = torch.Generator().manual_seed(step)
    x, g = (torch.randn(ROWS, D_IN, generator=generator).to(dtype) for _ in range(2))
    return TrainingBatch(x, x, g * scale, step=step)


@pytest.mark.parametrize("scale", ["all", "token"])
@pytest.mark.parametrize(("shuffle", "boosted"), [(False, False), (True, False), (False, True)])
def test_selection_loss_and_gradients_are_the_literal_ones(scale, shuffle, boosted):
    options = GradientTopKOptions(
        beta=0.7,
        beta_warmup_fraction=0.0,
        gradient_scale=scale,
        shuffle_gradients=shuffle,
        decode_boosted=boosted,
    )
    method = GradientTopK(settings(), options).double()
    batch = batch_of(3, torch.float64)
    output = method.losses(batch)
    sum(output.losses.values()).backward()

    w = method.weights
    leaves = [p.detach().clone().requires_grad_() for p in (w.W_enc, w.b_enc, w.W_dec, w.b_dec)]
    W_enc, b_enc, W_dec, b_dec = leaves
    x, g = batch.inputs, batch.gradients
    dims = None if scale == "all" else 1
    g = g / g.square().mean(dims, keepdim=True).sqrt()
    g = g.roll(1, 0) if shuffle else g
    z = (x - b_dec) @ W_enc + b_enc
    score = z * (1 + 0.7 * (g @ W_dec.detach().T).abs())
    chosen = score.topk(K, dim=1).indices
    decoded = score if boosted else z
    codes = torch.zeros_like(z).scatter(1, chosen, decoded.gather(1, chosen).relu())
    (x - (codes @ W_dec + b_dec)).square().mean().backward()
    torch.testing.assert_close(output.codes.to_dense().detach(), codes.detach())
    found = (w.encoder_rows.grad.T, w.b_enc.grad, w.W_dec.grad, w.b_dec.grad)
    for mine, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(mine, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16])
def test_beta_zero_is_topk_bit_for_bit(product_dtype):
    def learner(name, options):
        return Learner.build(
            DictionarySpec(name, D_SAE, K, 0),
            d_in=D_IN,
            schedule=Schedule.of(20),
            batch_rows=ROWS,
            options=options,
            optimizer=OptimizerConfig(),
            product_dtype=product_dtype,
            device=torch.device("cpu"),
        )

    none = MethodOptions(gradient_topk=GradientTopKOptions(beta=0.0))
    with_gradients, plain = learner("gradient_topk", none), learner("topk", MethodOptions())
    for step in range(20):
        with_gradients.step(batch_of(step))
        plain.step(batch_of(step))
    for name, parameter in plain.method.named_parameters():
        assert torch.equal(parameter, dict(with_gradients.method.named_parameters())[name]), name


def test_the_scale_of_the_gradients_plays_no_part_and_is_recorded():
    outputs = []
    for scale in (1e-6, 10.0):
        method = GradientTopK(settings(), GradientTopKOptions(beta_warmup_fraction=0.0))
        for step in range(1, 4):
            output = method.losses(batch_of(step, scale=scale))
        outputs.append(output.codes.to_dense())
        assert method.metrics()["gradient_rms"] == pytest.approx(scale, rel=0.05)
    torch.testing.assert_close(*outputs)


def test_the_overlap_with_plain_selection_falls_with_beta_as_in_the_toy_check():
    """512 latents, 64 dimensions, k = 16: overlap 0.90, 0.76, 0.54, 0.43 at β 0.1, 0.3, 1, 3."""
    size = settings(d_in=64, d_sae=512, k=16, batch_rows=1024)
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(1024, 64, generator=generator) for _ in range(2))
    for beta, overlap in ((0.1, 0.90), (0.3, 0.76), (1.0, 0.54), (3.0, 0.43)):
        options = GradientTopKOptions(beta=beta, beta_warmup_fraction=0.0)
        method = GradientTopK(size, options)
        method.losses(TrainingBatch(x, x, g, step=16))
        changed = method.metrics()["selection_changed_by_gradient"]
        assert 1 - changed == pytest.approx(overlap, abs=0.02)


def test_beta_rises_over_the_warm_up():
    method = GradientTopK(settings(), GradientTopKOptions(beta=1.0, beta_warmup_fraction=0.5))
    plain = TopK(settings(), TopKOptions())
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if k in plain.state_dict()})
    differing = []
    for step in (0, 5, 20):
        mine = method.losses(batch_of(step)).codes.to_dense() > 0
        theirs = plain.losses(batch_of(step)).codes.to_dense() > 0
        differing.append(int((mine != theirs).sum()))
    assert differing[0] == 0 < differing[1] < differing[2]


def test_a_batch_or_a_cache_without_gradients_is_refused_in_words(
    run_config, tiny_harvest, tmp_path
):
    from saelab.cache.writer import write_caches

    method = GradientTopK(settings(), GradientTopKOptions())
    with pytest.raises(ActivationError, match=r"saelab cache OUT --gradients"):
        method.losses(TrainingBatch(torch.randn(4, D_IN), torch.randn(4, D_IN), None, step=0))
    plain = dataclasses.replace(tiny_harvest, gradients=False)
    (cache,) = write_caches(tmp_path / "plain", plain)
    config = dataclasses.replace(run_config, cache=cache, methods=("topk", "gradient_topk"))
    with pytest.raises(ConfigError, match=r"gradient_topk learns from gradients.*--gradients"):
        train(config)
    assert not config.out.exists()


@pytest.mark.slow
def test_it_trains_from_a_cache_and_from_the_live_model(run_config, tiny_harvest):
    cached = dataclasses.replace(run_config, methods=("gradient_topk",), k=(4,))
    run = train(cached)
    figures = run["dictionaries"]["gradient_topk-d64-k4-s0"]
    assert figures["gradient_rms"] > 0 and 0 <= figures["selection_changed_by_gradient"] <= 1
    live = dataclasses.replace(
        cached,
        out=run_config.out.parent / "live",
        cache=None,
        stream=dataclasses.replace(tiny_harvest, gradients=False),
        stream_pool_rows=1024,
    )
    assert train(live)["status"] == "complete"


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"beta is -1.0; it must be at least 0"):
        TrainConfig(options=MethodOptions(gradient_topk=GradientTopKOptions(beta=-1.0)))
