"""What the loop itself guards against."""

import dataclasses
import itertools

import pytest

from saelab.errors import ActivationError
from saelab.formats.files import read_json
from saelab.training.config import OptimizerConfig
from saelab.training.learner import learning_rate_factor
from saelab.training.run import train


def test_a_loss_that_explodes_stops_the_run_in_words_and_keeps_the_checkpoint(run_config):
    wild = dataclasses.replace(
        run_config, k=(4,), optimizer=OptimizerConfig(learning_rate=1e38, clip_norm=None)
    )
    with pytest.raises(ActivationError, match=r"reconstruction loss is .*learning-rate"):
        train(wild)
    assert read_json(wild.out / "run.json")["status"] == "running"


def test_learning_rate_rises_stays_and_falls_to_nearly_zero():
    config = OptimizerConfig(warmup_fraction=0.1, decay_fraction=0.2)
    factors = [learning_rate_factor(step, 100, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[80] == 1.0
    assert factors[99] == pytest.approx(0.05)
    assert all(a >= b for a, b in itertools.pairwise(factors[80:]))
    flat = OptimizerConfig(warmup_fraction=0.0, decay_fraction=0.0)
    assert {learning_rate_factor(step, 100, flat) for step in range(100)} == {1.0}
