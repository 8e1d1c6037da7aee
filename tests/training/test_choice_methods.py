"""Mutual Choice, BatchTopK, Feature Choice and Matryoshka against dense float64 transcriptions."""

import dataclasses

import pytest
import torch

from saelab.errors import ConfigError
from saelab.stats.zipf import zipf_budgets
from saelab.training.config import TrainConfig
from saelab.training.interface import DictionarySettings, Normalisation, TrainingBatch
from saelab.training.methods import MethodOptions
from saelab.training.methods.feature_choice import FeatureChoice, FeatureChoiceOptions
from saelab.training.methods.matryoshka import Matryoshka, MatryoshkaOptions
from saelab.training.methods.mutual_choice import MutualChoice, MutualChoiceOptions
from saelab.training.options import AuxiliaryOptions

D_IN, D_SAE, K, ROWS = 10, 48, 3, 60
NO_AUXILIARY = AuxiliaryOptions(kind="none")


def settings(**changes):
    given = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "seed": 1, "batch_rows": ROWS, "n_steps": 40}
    return DictionarySettings(**(given | {"product_dtype": None} | changes))


def rows(seed, n=ROWS, dtype=torch.float64):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)).to(dtype)


def batch_of(x, step=0):
    return TrainingBatch(x, x, None, step=step)


def dense_weights(method):
    w = method.weights
    with torch.no_grad():
        w.b_enc.copy_(torch.linspace(-0.2, 0.2, D_SAE))
        w.b_dec.copy_(torch.linspace(-0.1, 0.1, D_IN))
    return [
        t.detach().double().clone().requires_grad_() for t in (w.W_enc, w.b_enc, w.W_dec, w.b_dec)
    ]


def assert_gradients(method, leaves):
    w = method.weights
    found = (w.encoder_rows.grad.T, w.b_enc.grad, w.W_dec.grad, w.b_dec.grad)
    for mine, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(mine, leaf.grad, rtol=1e-9, atol=1e-12)


def dense_batch_top(pre, count):
    """Literal: rectify, sort the whole batch, keep the largest `count`."""
    flat = pre.relu().flatten()
    order = flat.argsort(descending=True)[:count]
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[order] = True
    return torch.where(mask & (flat > 0), pre.flatten(), 0.0).view_as(pre)


@pytest.mark.parametrize("step", [0, 5])
def test_mutual_choice_loss_and_gradients_are_the_literal_ones(step):
    method = MutualChoice(settings(), MutualChoiceOptions(auxiliary=NO_AUXILIARY)).double()
    leaves = dense_weights(method)
    method.floor.fill_(0.4)
    x = rows(0)
    output = method.losses(batch_of(x, step))
    sum(output.losses.values()).backward()
    W_enc, b_enc, W_dec, b_dec = leaves
    codes = dense_batch_top((x - b_dec) @ W_enc + b_enc, K * ROWS)
    (x - (codes @ W_dec + b_dec)).square().mean().backward()
    torch.testing.assert_close(output.codes.to_dense().detach(), codes.detach())
    assert_gradients(method, leaves)


def test_mutual_choice_spends_its_budget_where_it_is_needed_and_keeps_l0_in_use():
    method = MutualChoice(settings(), MutualChoiceOptions())
    x = rows(0, 500, torch.float32)
    x[:250] *= 0.1
    output = method.losses(batch_of(x))
    l0 = output.codes.l0()
    assert int(l0.sum()) == K * 500
    assert float(l0[250:].double().mean()) > 3 * float(l0[:250].double().mean())
    method.calibrate(rows(1, 4000, torch.float32))
    dictionary = method.to_dictionary(Normalisation(torch.zeros(D_IN), 1.0))
    measured = float(dictionary.encode(rows(2, 4000, torch.float32)).l0().double().mean())
    assert measured == pytest.approx(K, rel=0.05)


def test_batch_topk_is_mutual_choice_with_auxk():
    options = MethodOptions()
    assert options.batch_topk == dataclasses.replace(
        options.mutual_choice, auxiliary=AuxiliaryOptions()
    )
    one = MutualChoice(settings(), options.batch_topk)
    other = MutualChoice(settings(), options.mutual_choice)
    x = rows(3, dtype=torch.float32)
    assert torch.equal(
        one.losses(batch_of(x)).codes.to_dense(), other.losses(batch_of(x)).codes.to_dense()
    )


@pytest.mark.parametrize("budgets", ["zipf", "uniform"])
def test_feature_choice_gives_each_latent_its_largest_tokens(budgets):
    options = FeatureChoiceOptions(
        auxiliary=NO_AUXILIARY, mutual_choice_fraction=0.5, budgets=budgets, exponent=1.0
    )
    method = FeatureChoice(settings(n_steps=8), options).double()
    for step in range(4):
        method.losses(batch_of(rows(step), step))
    assert not method.budgets.any()
    leaves = dense_weights(method)
    x = rows(9)
    output = method.losses(batch_of(x, 4))
    expected = zipf_budgets(
        D_SAE,
        K * ROWS,
        exponent=1.0 if budgets == "zipf" else 0.0,
        offset=10.0,
        smallest=1,
        largest=ROWS // 2,
    )
    order = method.fired.argsort(descending=True, stable=True)
    assert torch.equal(method.budgets[order], expected)
    assert int(method.budgets.sum()) == K * ROWS

    W_enc, b_enc, W_dec, b_dec = leaves
    pre = (x - b_dec) @ W_enc + b_enc
    rank = pre.argsort(dim=0, descending=True).argsort(dim=0)
    codes = torch.where(rank < method.budgets, pre.relu(), 0.0)
    torch.testing.assert_close(output.codes.to_dense().detach(), codes.detach())
    assert float(output.codes.l0().double().mean()) <= K
    method.zero_grad()
    output = method.losses(batch_of(x, 5))
    sum(output.losses.values()).backward()
    (x - (codes @ W_dec + b_dec)).square().mean().backward()
    assert_gradients(method, leaves)
    before = method.budgets.clone()
    method.losses(batch_of(rows(10), 6))
    assert torch.equal(method.budgets, before)


def test_feature_choice_from_scratch_and_its_thresholds_meet_the_target():
    options = FeatureChoiceOptions(mutual_choice_fraction=0.0)
    method = FeatureChoice(settings(), options)
    output = method.losses(batch_of(rows(0, dtype=torch.float32), 0))
    counts = (output.codes.to_dense() > 0).sum(0)
    assert bool((counts <= method.budgets).all())
    method.calibrate(rows(1, 6000, torch.float32))
    dictionary = method.to_dictionary(Normalisation(torch.zeros(D_IN), 1.0))
    fresh = dictionary.encode(rows(2, 6000, torch.float32))
    assert float(fresh.l0().double().mean()) == pytest.approx(K, rel=0.05)
    density = (fresh.to_dense() > 0).double().mean(0)
    budget_share = method.budgets.double() / ROWS
    assert torch.corrcoef(torch.stack([density, budget_share]))[0, 1] > 0.95


def test_a_latent_that_is_never_positive_is_dead_though_it_has_a_budget():
    options = FeatureChoiceOptions(
        mutual_choice_fraction=0.0, auxiliary=AuxiliaryOptions(dead_after_tokens=1)
    )
    method = FeatureChoice(settings(), options)
    with torch.no_grad():
        method.weights.b_enc[5] = -100.0
    batch = batch_of(rows(0, dtype=torch.float32))
    method.after_update(batch, method.losses(batch))
    assert int(method.budgets[5]) > 0
    assert method.auxiliary.dead_latents.dead().nonzero().flatten().tolist() == [5]


def test_matryoshka_loss_and_gradients_are_the_literal_weighted_mean_over_prefixes():
    options = MatryoshkaOptions(
        auxiliary=NO_AUXILIARY, prefix_shares=(0.25, 0.5, 1.0), prefix_weights=(1.0, 2.0, 5.0)
    )
    method = Matryoshka(settings(), options).double()
    leaves = dense_weights(method)
    x = rows(0)
    output = method.losses(batch_of(x))
    sum(output.losses.values()).backward()
    W_enc, b_enc, W_dec, b_dec = leaves
    codes = dense_batch_top((x - b_dec) @ W_enc + b_enc, K * ROWS)
    total = 0.0
    for size, weight in ((12, 1.0), (24, 2.0), (48, 5.0)):
        error = x - (codes[:, :size] @ W_dec[:size] + b_dec)
        total = total + weight / 8 * error.square().mean()
    total.backward()
    torch.testing.assert_close(output.losses["reconstruction"].detach(), total.detach())
    torch.testing.assert_close(output.codes.to_dense(), codes.detach())
    torch.testing.assert_close(output.reconstruction.detach(), (codes @ W_dec + b_dec).detach())
    assert_gradients(method, leaves)


def test_one_prefix_of_everything_is_batch_topk():
    nested = Matryoshka(
        settings(), MatryoshkaOptions(auxiliary=NO_AUXILIARY, prefix_shares=(1.0,))
    ).double()
    plain = MutualChoice(settings(), MutualChoiceOptions(auxiliary=NO_AUXILIARY)).double()
    for method in (nested, plain):
        sum(method.losses(batch_of(rows(4))).losses.values()).backward()
    for mine, theirs in zip(nested.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_latents_without_a_budget_are_silent_after_training_too():
    options = FeatureChoiceOptions(
        smallest_budget=0, budgets="zipf", exponent=3.0, mutual_choice_fraction=0.0
    )
    method = FeatureChoice(settings(), options)
    x = rows(0, dtype=torch.float32)
    method.losses(batch_of(x, step=0))
    none = method.budgets == 0
    assert 0 < int(none.sum()) < D_SAE
    fresh = rows(1, n=4000, dtype=torch.float32)
    method.calibrate(fresh)
    codes = method.to_dictionary(Normalisation(torch.zeros(D_IN), 1.0)).encode(fresh).to_dense()
    assert int((codes[:, none] > 0).sum()) == 0
    assert float((codes > 0).sum(1).float().mean()) == pytest.approx(K, abs=0.05)


def test_thresholds_that_were_never_calibrated_are_refused():
    for method in (
        MutualChoice(settings(), MutualChoiceOptions()),
        FeatureChoice(settings(), FeatureChoiceOptions()),
    ):
        with pytest.raises(ConfigError, match=r"never calibrated: call `calibrate`"):
            method.to_dictionary(Normalisation(torch.zeros(D_IN), 1.0))
    with pytest.raises(ConfigError, match="before its second phase began"):
        FeatureChoice(settings(), FeatureChoiceOptions()).calibrate(rows(0, dtype=torch.float32))


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"smallest_budget": 20}, {}, r"need 92160, and k · batch_rows is 65536: give batch_rows "),
        ({"largest_share": 0.001}, {}, r"at most 0.001 of a batch can take 9216 pairs.*k of at mo"),
        ({"mutual_choice_fraction": 1.0}, {}, r"leaves none of the 489 steps to feature choice"),
        ({"exponent": -1.0}, {}, r"exponent is -1.0; it must be between 0 and 100"),
    ],
)
def test_infeasible_budgets_are_refused_with_the_nearest_feasible_setting(
    options, changes, message
):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(
            methods=("feature_choice",),
            options=MethodOptions(feature_choice=FeatureChoiceOptions(**options)),
            **changes,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_shares": (0.5, 0.25, 1.0)}, "must rise strictly from above 0 to 1"),
        ({"prefix_weights": (1.0,)}, "it must hold 5 numbers"),
    ],
)
def test_prefixes_that_are_not_nested_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MatryoshkaOptions(**changes)
