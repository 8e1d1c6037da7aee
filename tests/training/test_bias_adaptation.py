"""Bias adaptation against a slow dense transcription of its equations; each branch of its rule."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from saelab.dictionary import load_dictionary, save_dictionary
from saelab.errors import ConfigError
from saelab.sparse import SparseCodes
from saelab.stats.metrics import fvu
from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import DictionarySettings, Normalisation, TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import METHODS, MethodOptions
from saelab.training.methods.bias_adaptation import (
    BiasAdaptation,
    BiasAdaptationOptions,
    GroupBiasAdaptationOptions,
)
from saelab.training.options import AuxiliaryOptions
from saelab.training.parts.firing_bias import (
    FiringBias,
    FiringRule,
    group_sizes,
    target_frequencies,
    update_periods,
)
from saelab.training.schedule import Schedule

D_IN, D_SAE, K = 12, 42, 4


def settings(**changes):
    given = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "seed": 1, "batch_rows": 50, "n_steps": 60}
    return DictionarySettings(**(given | {"product_dtype": None} | changes))


def options(**changes):
    given = {"groups": 4, "update_every_steps": 3, "firings_per_update": 0.0, "start": "zero"}
    return GroupBiasAdaptationOptions(**(given | changes))


def rows_of(n_rows, seed=0, dtype=torch.float32):
    """Rows of very different norms around a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_rows, D_IN, generator=generator, dtype=dtype) + 0.3
    return x * torch.rand(n_rows, 1, generator=generator, dtype=dtype).mul(3).exp()


def normalisation_of(x):
    return Normalisation.of(x.mean(0), float((x - x.mean(0)).square().sum(1).mean()))


def batch_of(raw, step=0, normalisation=None):
    shown = raw if normalisation is None else normalisation.apply(raw)
    return TrainingBatch(shown, shown, None, step=step, normalisation=normalisation)


class Literal:
    """Section by section what the method is, on dense matrices with plain autograd."""

    def __init__(self, W, target, group, b_pre, *, gamma, every, dead_below, tied):
        self.W = W.clone().requires_grad_()
        self.V = self.W if tied else W.clone().requires_grad_()
        self.matrices = [self.W] if tied else [self.W, self.V]
        self.a = torch.ones(len(W), dtype=W.dtype, requires_grad=True)
        self.b = torch.zeros(len(W), dtype=W.dtype)
        self.target, self.group, self.b_pre = target, group, b_pre
        self.gamma, self.every, self.dead_below = gamma, every, dead_below
        trained = [*self.matrices, self.a]
        self.adam = torch.optim.Adam(trained, lr=1e-2, betas=(0.9, 0.99), foreach=False)
        self.seen = []
        self.raised, self.lowered = 0, 0

    def step(self, x, t):
        u = x / x.norm(dim=1, keepdim=True)
        Z = (u - self.b_pre) @ self.V.T
        Y = Z + self.b
        A = Z * (Y > 0)
        error = (A * self.a) @ self.W + self.b_pre - u
        loss = 0.5 * error.square().sum(1).mean()
        self.adam.zero_grad()
        loss.backward()
        for M in self.matrices:
            rows = M.detach()
            M.grad -= (M.grad * rows).sum(1, keepdim=True) * rows
        self.adam.step()
        with torch.no_grad():
            for M in self.matrices:
                M /= M.norm(dim=1, keepdim=True)
        self.seen.append(Y.detach())
        if t % self.every == 0:
            self.adapt(torch.cat(self.seen))
            self.seen = []
        return float(loss.detach())

    def adapt(self, buffer):
        p = (buffer > 0).double().mean(0)
        r = buffer.amax(0).clamp_min(0)
        for m in range(len(self.b)):
            own = r[(self.group == self.group[m]) & (r > 0)]
            baseline = own.mean() if len(own) else r[r > 0].mean() if (r > 0).any() else 1.0
            if p[m] > self.target[m]:
                self.b[m] = max(self.b[m] - self.gamma * r[m], -1.0)
                self.lowered += 1
            elif p[m] < self.dead_below:
                self.b[m] = min(self.b[m] + self.gamma * baseline, 0.0)
                self.raised += 1


@pytest.mark.parametrize(("gamma", "tied"), [(0.01, True), (0.2, True), (0.2, False)])
def test_training_is_the_literal_algorithm_in_float64(gamma, tied):
    given = options(gamma_up=gamma, gamma_down=gamma, short_run_boost=1.0, tied=tied)
    method = BiasAdaptation(settings(), given).double()
    x = rows_of(4000, dtype=torch.float64)
    normalisation = normalisation_of(x)
    first = x[:50] / x[:50].norm(dim=1, keepdim=True)
    biases = method.biases
    literal = Literal(
        method.weights.directions.detach(),
        biases.target,
        biases.group,
        first.mean(0),
        gamma=gamma,
        every=3,
        dead_below=given.dead_below,
        tied=tied,
    )
    adam = torch.optim.Adam(method.parameters(), lr=1e-2, betas=(0.9, 0.99), foreach=False)
    for step in range(60):
        rows = x[50 * step : 50 * step + 50]
        batch = batch_of(rows, step, normalisation)
        adam.zero_grad()
        output = method.losses(batch)
        output.losses["reconstruction"].backward()
        method.adjust_gradients()
        adam.step()
        method.after_update(batch, output)
        loss = literal.step(rows, step + 1)
        assert abs(float(output.losses["reconstruction"].detach()) - loss) < 1e-9
    assert literal.lowered and (literal.raised or gamma == 0.01)
    torch.testing.assert_close(method.weights.directions.detach(), literal.W.detach())
    torch.testing.assert_close(method.weights.W_enc.detach(), literal.V.detach().T)
    torch.testing.assert_close(method.weights.scales.detach(), literal.a.detach())
    torch.testing.assert_close(biases.bias, literal.b, rtol=1e-9, atol=1e-9)
    assert biases.updates.tolist() == [20] * 4


def test_untied_weights_are_saved_and_begun_from_and_refused_by_tied_ones():
    untied, again = (BiasAdaptation(settings(seed=s), options(tied=False)) for s in (1, 2))
    x = rows_of(300)
    untied.losses(batch_of(x))
    with torch.no_grad():
        untied.weights.directions.copy_(untied.weights.directions.roll(1, 0))
        untied.weights.scales.uniform_(-1.5, 1.5)
        untied.biases.bias.uniform_(-0.4, 0)
    saved = untied.to_dictionary(normalisation_of(x))
    assert again.begin_from(saved, normalisation_of(x)) == []
    for name, tensor in again.to_dictionary(normalisation_of(x)).tensors().items():
        torch.testing.assert_close(tensor, saved.tensors()[name])
    output = again.losses(batch_of(x, step=1))
    torch.testing.assert_close(output.reconstruction.detach(), saved(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="and tied weights from tied ones"):
        BiasAdaptation(settings(), options()).begin_from(saved, normalisation_of(x))


def test_gradients_equal_the_formulas_of_the_paper_by_hand():
    method = BiasAdaptation(settings(), options(b_pre="zero")).double()
    w = method.weights
    with torch.no_grad():
        method.biases.bias.uniform_(-0.5, 0)
        w.scales.uniform_(0.5, 1.5)
    x = rows_of(50, dtype=torch.float64)
    method.losses(batch_of(x, step=1)).losses["reconstruction"].backward()
    with torch.no_grad():
        u = x / x.norm(dim=1, keepdim=True)
        W, a = w.directions, w.scales
        Z = u @ W.T
        mask = Z + method.biases.bias > 0
        A = Z * mask
        R = ((A * a) @ W - u) / len(u)
        dZ = (R @ W.T) * a * mask
        torch.testing.assert_close(w.directions.grad, dZ.T @ u + (A * a).T @ R)
        torch.testing.assert_close(w.scales.grad, (A * (R @ W.T)).sum(0))


def test_the_reconstruction_is_in_the_units_of_the_batch():
    method = BiasAdaptation(settings(), options())
    x = rows_of(400)
    normalisation = normalisation_of(x)
    batch = batch_of(x, 0, normalisation)
    output = method.losses(batch)
    found = fvu(batch.inputs, output.reconstruction)
    assert found == pytest.approx(fvu(x, normalisation.undo(output.reconstruction)), rel=1e-4)
    dictionary = method.to_dictionary(normalisation)
    assert found == pytest.approx(fvu(x, dictionary(x)), rel=1e-4)


def test_what_is_saved_computes_what_was_trained(tmp_path):
    method = BiasAdaptation(settings(), options())
    x = rows_of(300)
    x[7] = 0
    method.losses(batch_of(x))
    with torch.no_grad():
        method.biases.bias.uniform_(-0.4, 0)
        method.weights.scales.uniform_(0.5, 1.5)
    output = method.losses(batch_of(x, step=1))
    save_dictionary(
        tmp_path / "d",
        method.to_dictionary(normalisation_of(x)),
        self_test_inputs=x,
        training={},
        made_from={},
    )
    dictionary = load_dictionary(tmp_path / "d").dictionary
    assert dictionary.architecture == "jumprelu"
    assert dictionary.input_normalisation == "constant_norm_rescale"
    trained = output.codes.to_dense() * D_IN**0.5
    torch.testing.assert_close(dictionary.encode_dense(x), trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dictionary(x), output.reconstruction, rtol=1e-4, atol=1e-4)
    assert not output.reconstruction[7].any()


def rule(**changes):
    given = {"frequencies": (0.2, 0.1), "periods": (2, 2), "dead_below": 1e-6, "n_steps": 2000}
    given |= {"gamma_down": 0.1, "gamma_up": 0.5, "short_run_boost": 1.0}
    return FiringRule(**(given | changes))


def measured(biases, fired, peak, rows=100, group_rows=None):
    biases.fired.copy_(torch.tensor(fired))
    biases.peak.copy_(torch.tensor(peak))
    biases.rows.copy_(torch.tensor(group_rows or [rows] * len(biases.rows)))
    return biases


def test_each_branch_of_the_rule():
    biases = FiringBias(6, rule()).double()
    biases.bias.copy_(torch.tensor([-0.3, -0.99, -0.3, -0.3, -0.2, -0.02]).double())
    # Over its ceiling, over and clamped at −1, between; between, dead, dead and clamped at 0.
    measured(biases, [30, 21, 20, 5, 0, 0], [0.5, 0.4, 0.3, 0.2, 0.0, 0.0])
    biases.update(2)
    expected = [-0.3 - 0.1 * 0.5, -1.0, -0.3, -0.3, -0.2 + 0.5 * 0.2, 0.0]
    torch.testing.assert_close(biases.bias, torch.tensor(expected).double())
    assert not biases.fired.any() and not biases.peak.any() and not biases.rows.any()
    torch.testing.assert_close(
        biases.frequency, torch.tensor([0.3, 0.21, 0.2, 0.05, 0.0, 0.0]).double()
    )


def test_a_silent_group_takes_the_mean_of_all_and_silence_everywhere_counts_as_one():
    biases = FiringBias(6, rule()).double()
    biases.bias.fill_(-0.9)
    measured(biases, [3, 3, 0, 0, 0, 0], [0.2, 0.4, 0.0, 0.0, 0.0, 0.0])
    biases.update(2)
    torch.testing.assert_close(
        biases.bias, torch.tensor([-0.9, -0.9] + [-0.9 + 0.5 * 0.3] * 4).double()
    )
    biases.bias.fill_(-0.9)
    measured(biases, [0] * 6, [0.0] * 6)
    biases.update(4)
    torch.testing.assert_close(biases.bias, torch.full((6,), -0.4).double())


def test_groups_move_only_when_they_are_due_and_keep_counting_until_then():
    biases = FiringBias(4, rule(periods=(2, 3))).double()
    measured(biases, [50, 50, 50, 50], [1.0] * 4)
    biases.update(1)
    assert not biases.bias.any()
    biases.update(2)
    assert biases.bias.tolist() == [-0.1, -0.1, 0.0, 0.0]
    assert biases.fired.tolist() == [0, 0, 50, 50] and biases.rows.tolist() == [0, 100]
    biases.rows[0] = 100
    biases.update(3)
    assert biases.bias.tolist() == [-0.1] * 4
    assert biases.updates.tolist() == [1, 1]
    assert biases.metrics()["bias_updates_fewest"] == 1


def test_short_runs_take_proportionally_longer_steps_up_to_the_boost():
    assert rule(n_steps=1000).boosts() == [1.0, 1.0]
    assert rule(n_steps=1000, periods=(2, 5), short_run_boost=5.0).boosts() == [1.0, 2.5]
    assert rule(n_steps=10, short_run_boost=5.0).boosts() == [5.0, 5.0]
    biases = FiringBias(2, rule(n_steps=500, short_run_boost=5.0))
    measured(biases, [50, 50], [1.0, 1.0])
    biases.update(2)
    torch.testing.assert_close(biases.bias, torch.tensor([-0.2, -0.2]))


@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16])
def test_streamed_counts_and_maxima_are_those_of_a_buffer(product_dtype):
    method = BiasAdaptation(settings(product_dtype=product_dtype), options(update_every_steps=9))
    with torch.no_grad():
        method.biases.bias.uniform_(-0.6, -0.05)
    buffer = []
    for step in range(1, 8):
        batch = batch_of(rows_of(50, seed=step), step)
        output = method.losses(batch)
        buffer.append(output.codes.to_dense())
        method.after_update(batch, output)
    seen = torch.cat(buffer)
    assert (seen >= 0).all()
    assert torch.equal(method.biases.fired, (seen > 0).sum(0))
    largest = torch.where(seen > 0, seen + method.biases.bias, 0.0).amax(0)
    assert torch.equal(method.biases.peak, largest)
    assert method.biases.rows.tolist() == [350] * 4


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    d_sae=st.integers(1, 5000),
    groups=st.integers(1, 40),
    ratio=st.floats(1, 1e4),
    budget=st.floats(0.1, 500),
)
def test_targets_from_a_budget_add_up_to_it_and_fall_geometrically(d_sae, groups, ratio, budget):
    groups = min(groups, d_sae)
    found = target_frequencies(d_sae, groups, ratio, highest=None, budget=budget)
    sizes = group_sizes(d_sae, groups)
    assert sum(sizes) == d_sae and max(sizes) - min(sizes) <= 1
    assert sum(n * p for n, p in zip(sizes, found, strict=True)) == pytest.approx(budget)
    steps = [low / high for high, low in itertools.pairwise(found)]
    assert steps == pytest.approx([ratio ** (-1 / max(1, groups - 1))] * (groups - 1))


def test_targets_follow_the_closed_form():
    given = GroupBiasAdaptationOptions(highest_frequency=0.1, lowest_frequency=1e-3)
    found = given.frequencies(256, 32)
    assert found == pytest.approx([0.1 * (1e-3 / 0.1) ** (i / 9) for i in range(10)])
    assert BiasAdaptationOptions(budget_factor=1.5).frequencies(256, 32) == [1.5 * 32 / 256]


@pytest.mark.parametrize(
    ("n_steps", "every", "firings", "expected"),
    [
        (24_000, 10, 0.0, [10, 10]),
        (24_000, None, 0.0, [48, 48]),
        (200_000, None, 0.0, [50, 50]),
        (300, None, 0.0, [1, 1]),
        (24_000, 10, 20.0, [10, 40]),
    ],
)
def test_periods_leave_rare_groups_time_to_be_measured(n_steps, every, firings, expected):
    found = update_periods(
        [0.1, 1e-3], every=every, firings=firings, batch_rows=500, n_steps=n_steps
    )
    assert found == expected


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_starting_at_the_targets_makes_each_latent_fire_that_often(factor):
    given = options(start="target", start_factor=factor)
    method = BiasAdaptation(settings(batch_rows=1000), given)
    x = rows_of(1000)
    codes = method.losses(batch_of(x)).codes.to_dense()
    wanted = (factor * 1000 * method.biases.target).round()
    unclamped = method.biases.bias < 0
    assert unclamped.any()
    # The row at the threshold itself does not fire.
    assert ((codes > 0).sum(0) - wanted)[unclamped].abs().max() <= 1


def test_b_pre_is_the_mean_of_the_first_batch_or_nothing_and_stays():
    x = rows_of(200)
    method = BiasAdaptation(settings(), options())
    method.losses(batch_of(x))
    mean = (x / x.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(method.weights.b_dec, mean)
    method.losses(batch_of(rows_of(200, seed=5), step=1))
    torch.testing.assert_close(method.weights.b_dec, mean)
    method = BiasAdaptation(settings(), options(b_pre="zero"))
    method.losses(batch_of(x))
    assert not method.weights.b_dec.any()
    assert "b_dec" not in dict(method.weights.named_parameters())


def test_product_in_bfloat16_changes_little_and_lists_firing_pairs_only():
    x = rows_of(500)
    exact = BiasAdaptation(settings(), options(start="target"))
    fast = BiasAdaptation(settings(product_dtype=torch.bfloat16), options(start="target"))
    a, b = exact.losses(batch_of(x)), fast.losses(batch_of(x))
    assert a.losses["reconstruction"].item() == pytest.approx(
        b.losses["reconstruction"].item(), abs=3e-3
    )
    assert (b.codes.value > -fast.biases.bias[b.codes.latent]).all()
    shared = (a.codes.to_dense() > 0) == (b.codes.to_dense() > 0)
    assert shared.float().mean() > 0.995


def test_directions_keep_norm_one_and_thresholds_stay_in_their_range():
    given = options(gamma_down=1.0, gamma_up=1.0, update_every_steps=1)
    learner = Learner.build(
        DictionarySpec("group_bias_adaptation", D_SAE, K, 0),
        d_in=D_IN,
        schedule=Schedule.of(20),
        batch_rows=64,
        options=MethodOptions(group_bias_adaptation=given),
        optimizer=OptimizerConfig(),
        product_dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    for step in range(20):
        learner.step(batch_of(rows_of(64, seed=step), step))
        norms = learner.method.weights.directions.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(D_SAE))
        bias = learner.method.biases.bias
        assert (bias >= -1).all() and (bias <= 0).all()


def test_the_auxiliary_loss_trains_directions_and_scales_of_dead_latents():
    given = options(auxiliary=AuxiliaryOptions(kind="auxk"))
    method = BiasAdaptation(settings(), given)
    method.biases.bias[5:9] = -1.0
    method.auxiliary.dead_latents.listed[5:9] = True
    output = method.losses(batch_of(rows_of(64), step=1))
    assert not output.codes.fired()[5:9].any()
    output.losses["auxk"].backward()
    assert method.weights.directions.grad[5:9].any() and method.weights.scales.grad[5:9].any()
    method = BiasAdaptation(settings(), options())
    assert set(method.losses(batch_of(rows_of(64))).losses) == {"reconstruction"}


def test_metrics_name_every_group_once_it_was_measured():
    method = BiasAdaptation(settings(), options(update_every_steps=2))
    assert "frequency_group_00" not in method.metrics()
    for step in range(2):
        batch = batch_of(rows_of(50, seed=step), step)
        output = method.losses(batch)
        method.after_update(batch, output)
    figures = method.metrics()
    assert {f"frequency_group_{i:02}" for i in range(4)} <= set(figures)
    assert figures["l0_budget"] == pytest.approx(K * options().budget_factor)
    assert figures["fraction_above_target"] > 0.5 and figures["fraction_silent"] == 0
    assert all(math.isfinite(value) for value in figures.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"highest_frequency": 0.7}, r"highest_frequency is 0\.7.*at most 0\.5"),
        ({"lowest_frequency": 0.01}, "without highest_frequency"),
        ({"highest_frequency": 0.1, "lowest_frequency": 0.2}, "is above highest_frequency"),
        ({"groups": 0}, "groups is 0"),
        ({"gamma_down": 2.0}, "gamma_down is 2.0; it must be between 0 and 1"),
        ({"frequency_ratio": 0.5}, "frequency_ratio is 0.5"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        GroupBiasAdaptationOptions(**given)


SHAPE = {"d_sae": 2304, "k": 32, "batch_rows": 2048, "n_steps": 300}


@pytest.mark.parametrize(
    ("given", "shape", "message", "remedy"),
    [
        ({"groups": 20}, {"d_sae": 16, "k": 1}, "at most 16", {"groups": 16}),
        ({}, {"k": 1500}, "at most 0.768, or k", None),
        ({}, {"k": 800}, r"would be 1\.\d+.*budget_factor to at most 0\.357", None),
        ({"update_every_steps": 400}, {}, "give at most 300", {"update_every_steps": 300}),
        (
            {},
            {"d_sae": 131072, "k": 8},
            r"20 firings in [\d,]+ steps and the run has 300.*train on at least [\d,]+ tokens",
            None,
        ),
    ],
)
def test_targets_that_cannot_be_reached_are_refused_with_the_nearest_that_can(
    given, shape, message, remedy
):
    shape = SHAPE | shape
    (problem,) = GroupBiasAdaptationOptions(budget_factor=1.0, **given).problems_with(**shape)
    assert re.search(message, problem), problem
    if remedy:
        assert not GroupBiasAdaptationOptions(**(given | remedy)).problems_with(**shape)
    factor = re.search(r"budget_factor to at most (0\.\d+)", problem)
    if factor:
        nearest = float(factor[1]) - 1e-3
        flat = 1.0 if "or k" in problem else 100.0
        changed = GroupBiasAdaptationOptions(budget_factor=nearest, frequency_ratio=flat)
        assert not changed.problems_with(**shape)
    tokens = re.search(r"at least ([\d,]+) tokens", problem)
    if tokens:
        steps = int(tokens[1].replace(",", "")) // shape["batch_rows"]
        assert not GroupBiasAdaptationOptions().problems_with(**(shape | {"n_steps": steps}))
        firings = float(re.search(r"firings_per_update to at most ([\d.]+)", problem)[1])
        assert not GroupBiasAdaptationOptions(firings_per_update=firings).problems_with(**shape)


def test_one_class_under_two_names():
    assert METHODS["bias_adaptation"] is METHODS["group_bias_adaptation"] is BiasAdaptation
    assert MethodOptions().bias_adaptation.groups == 1
    assert MethodOptions().group_bias_adaptation.groups == 10
    assert not MethodOptions().bias_adaptation.problems_with(**SHAPE)
    assert not MethodOptions().group_bias_adaptation.problems_with(**SHAPE)


def test_codes_without_any_pair_are_counted():
    biases = FiringBias(3, rule(frequencies=(0.1,), periods=(5,)))
    empty = SparseCodes(
        torch.zeros(11, dtype=torch.int64), torch.zeros(0).long(), torch.zeros(0), 3
    )
    biases.count(empty)
    assert biases.rows.tolist() == [10] and not biases.peak.any()
