"""The target-L0 controller: on models of a training, and on small real ones."""

import math

import pytest
import torch

from saelab.errors import ConfigError
from saelab.sparse import SparseCodes
from saelab.stats.metrics import mean_l0
from saelab.training.config import DictionarySpec, OptimizerConfig, TrainConfig
from saelab.training.interface import Normalisation, TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import MethodOptions
from saelab.training.methods.relu import ReLUOptions
from saelab.training.parts.bases import SparsityController
from saelab.training.schedule import Schedule

METHODS = ("relu", "gated", "jumprelu")
D_IN, D_SAE, N_FEATURES, K = 24, 96, 64, 6


def codes_with(l0, rows=200):
    """Codes of the given mean L0, with listed zeros beside them, all in the last row."""
    value = torch.cat([torch.ones(round(l0 * rows)), torch.zeros(rows)])
    row_pointer = torch.zeros(rows + 1, dtype=torch.int64)
    row_pointer[-1] = len(value)
    return SparseCodes(row_pointer, torch.arange(len(value)), value, 10**6)


def simulate(controller, n_steps, start, exponent=0.7, lag=8.0, noise=0.02, ceiling=math.inf):
    """L0 follows 50 · λ^−exponent with a lag of some steps, and each batch measures it noisily."""
    generator = torch.Generator().manual_seed(0)
    log_l0, history = math.log(64.0), []
    controller.start(torch.tensor(float(start)))
    for _ in range(n_steps):
        aim = min(math.log(50) - exponent * math.log(float(controller.weight())), ceiling)
        log_l0 += (aim - log_l0) / lag
        history.append(math.exp(log_l0))
        controller.update(
            codes_with(history[-1] * math.exp(noise * float(torch.randn((), generator=generator))))
        )
    return history


@pytest.mark.parametrize("n_steps", [150, 600])
@pytest.mark.parametrize("start", [0.03, 2.0, 50.0])
@pytest.mark.parametrize("exponent", [0.4, 0.9])
def test_a_lagging_noisy_plant_ends_at_the_target(n_steps, start, exponent):
    history = simulate(SparsityController(32, n_steps, None), n_steps, start, exponent)
    for l0 in history[-n_steps // 10 :]:
        assert abs(l0 / 32 - 1) < 0.05


def test_a_target_out_of_reach_leaves_a_finite_weight():
    for target in (1, 10**5):
        controller = SparsityController(target, 100, None)
        for _ in range(400):
            controller.update(codes_with(50.0))
        assert 0 < float(controller.weight()) < math.inf
    controller = SparsityController(5, 100, None)
    controller.update(codes_with(0.0))
    assert math.isfinite(float(controller.weight())) and float(controller.weight()) < 1


def test_listed_zeros_do_not_count_and_the_target_itself_changes_nothing():
    controller = SparsityController(32, 100, None)
    controller.start(torch.tensor(3.0))
    for _ in range(20):
        controller.update(codes_with(32))
    assert float(controller.weight()) == pytest.approx(3.0, rel=1e-5)


def test_a_fixed_weight_stays():
    controller = SparsityController(32, 100, 0.25)
    controller.start(torch.tensor(3.0))
    controller.update(codes_with(500))
    assert float(controller.weight()) == 0.25


def test_buffers_are_the_whole_state():
    one, other = SparsityController(32, 100, None), SparsityController(32, 100, None)
    one.start(torch.tensor(3.0))
    for l0 in (60, 50, 40):
        one.update(codes_with(l0))
    other.load_state_dict({key: value.clone() for key, value in one.state_dict().items()})
    for l0 in (35, 20, 33):
        one.update(codes_with(l0))
        other.update(codes_with(l0))
    assert torch.equal(one.weight(), other.weight())


def planted(n, seed):
    """Sparse non-negative mixtures of more directions than dimensions, and a little noise."""
    fixed = torch.Generator().manual_seed(123)
    directions = torch.nn.functional.normalize(
        torch.randn(N_FEATURES, D_IN, generator=fixed), dim=1
    )
    frequency = 1 / (torch.arange(N_FEATURES) + 6.0)
    frequency *= 4 / frequency.sum()
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, N_FEATURES, generator=generator) < frequency
    strength = active * (1 + torch.rand(n, N_FEATURES, generator=generator))
    return strength @ directions + 0.05 * torch.randn(n, D_IN, generator=generator)


@pytest.mark.parametrize("name", METHODS)
def test_a_planted_problem_ends_within_five_percent_of_its_target(name):
    n_steps, rows = 200, 512
    sample = planted(8192, 1)
    mean = sample.mean(0)
    normalisation = Normalisation.of(mean, float((sample - mean).square().sum(1).mean()))
    learner = Learner.build(
        DictionarySpec(name, D_SAE, K, 0),
        d_in=D_IN,
        schedule=Schedule.of(n_steps),
        batch_rows=rows,
        options=MethodOptions(),
        optimizer=OptimizerConfig(),
        product_dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    stream = normalisation.apply(planted(n_steps * rows, 2)).split(rows)
    for step, x in enumerate(stream):
        learner.step(TrainingBatch(x, x, None, step=step))
    dictionary = learner.method.to_dictionary(normalisation)
    l0 = mean_l0(dictionary.encode(planted(16384, 3)))
    assert abs(l0 / K - 1) < 0.05


@pytest.mark.parametrize("name", METHODS)
def test_a_target_above_half_the_width_is_refused_with_the_nearest_that_works(name):
    message = r"target L0 not reachable: .* take k = 32 or less, or d_sae = 80 or more"
    with pytest.raises(ConfigError, match=message):
        TrainConfig(methods=(name,), d_sae=(64,), k=(40,))
    TrainConfig(methods=(name,), d_sae=(64,), k=(32,))


def test_a_held_weight_may_lead_anywhere_but_must_be_a_number():
    options = MethodOptions(relu=ReLUOptions(sparsity_weight=2.0))
    TrainConfig(methods=("relu",), d_sae=(64,), k=(40,), options=options)
    with pytest.raises(ConfigError, match="sparsity_weight is nan; it must be at least 0, finite"):
        ReLUOptions(sparsity_weight=math.nan)
    with pytest.raises(ConfigError, match=r"start_l0_factor is 0\.0; it must be"):
        ReLUOptions(start_l0_factor=0.0)
