"""Runs that are resumed to be longer: both schedules, exact resume, records and refusals."""

import dataclasses

import pytest
import torch

from saelab.dictionary import load_dictionary
from saelab.errors import ConfigError, Stopped
from saelab.formats.files import read_json
from saelab.training.config import OptimizerConfig
from saelab.training.run import train
from saelab.training.schedule import Schedule

from .test_run import NAMES, _raise_after, log_without_times, weights_of

STEPS, LONGER = 24, 40


def longer(config, steps=LONGER, **changes):
    return dataclasses.replace(config, n_tokens=256 * steps, **changes)


def stopped_after(config, step, monkeypatch, **how):
    from saelab.training import loop

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_stop_if_asked", _raise_after(step))
        with pytest.raises(Stopped):
            train(config, **how)


def extension(steps_before, steps, from_step, on_longer):
    return {
        "from_step": from_step,
        "n_steps_before": steps_before,
        "n_tokens_before": 256 * steps_before,
        "n_tokens": 256 * steps,
        "on_longer": on_longer,
    }


def test_redecay_takes_nothing_back_and_falls_at_the_end_of_the_added_steps():
    config = OptimizerConfig(warmup_fraction=0.1, decay_fraction=0.2)
    first = extension(100, 200, 100, "redecay")
    longer = Schedule.of(200, [first])
    assert longer.method_steps == 100
    assert [longer.rate_factor(step, config) for step in (100, 179)] == [1.0, 1.0]
    assert longer.rate_factor(190, config) == pytest.approx(0.5)
    # A warm-up that was not over goes on as it was.
    early = Schedule.of(200, [extension(100, 200, 4, "redecay")])
    assert early.rate_factor(4, config) == Schedule.of(100).rate_factor(4, config) == 0.5
    # Again, and after that by the whole length.
    again = Schedule.of(400, [first, extension(200, 400, 200, "redecay")])
    assert (again.method_steps, again.decay_from) == (100, 200)
    last = [first, extension(200, 400, 200, "extend")]
    assert Schedule.of(400, last) == Schedule.of(400)


def test_extending_before_the_decay_equals_a_run_so_long_from_the_start(
    run_config, tmp_path, monkeypatch
):
    methods = ("topk", "batch_topk")
    config = dataclasses.replace(run_config, k=(4,), methods=methods, calibration_rows=512)
    whole = longer(config, out=tmp_path / "whole")
    train(whole)
    stopped_after(config, 14, monkeypatch)
    train(longer(config), resume=True, on_longer="extend")
    assert weights_of(config.out) == weights_of(whole.out)
    assert log_without_times(config.out) == log_without_times(whole.out)


@pytest.mark.parametrize(
    ("method", "on_longer"),
    [("topk", "redecay"), ("jumprelu", "extend"), ("feature_choice", "extend")],
)
def test_killed_in_the_added_steps_and_resumed_equals_not_killed(
    run_config, tmp_path, monkeypatch, method, on_longer
):
    config = dataclasses.replace(run_config, k=(4,), methods=(method,), calibration_rows=512)
    other = dataclasses.replace(config, out=tmp_path / "other")
    for each in (config, other):
        train(each)
    train(longer(other), resume=True, on_longer=on_longer)
    # Once before the first checkpoint of the added steps, once after it.
    stopped_after(longer(config), 26, monkeypatch, resume=True, on_longer=on_longer)
    stopped_after(longer(config), 31, monkeypatch, resume=True)
    assert load_dictionary(next(config.out.glob("dictionaries/*")))  # the finished one still stands
    train(longer(config), resume=True)
    assert weights_of(config.out) == weights_of(other.out)
    assert log_without_times(config.out) == log_without_times(other.out)
    recorded = [extension(STEPS, LONGER, STEPS, on_longer)]
    assert read_json(config.out / "run.json")["extensions"] == recorded


def test_both_lengths_are_recorded_and_the_same_command_goes_on(run_config):
    train(run_config)
    before = weights_of(run_config.out)
    run = train(longer(run_config), resume=True)
    first = extension(STEPS, LONGER, STEPS, "redecay")
    assert run["extensions"] == [first] and run["config"]["n_tokens"] == 256 * LONGER
    assert weights_of(run_config.out).keys() == before.keys()
    assert weights_of(run_config.out) != before
    saved = load_dictionary(run_config.out / "dictionaries" / NAMES[0]).manifest["config"]
    assert saved["n_tokens"] == 256 * LONGER and saved["extensions"] == [first]
    again = train(longer(run_config), resume=True)
    assert again == run
    twice = train(longer(run_config, 48), resume=True, on_longer="extend")
    assert twice["extensions"] == [first, extension(LONGER, 48, LONGER, "extend")]


def test_a_run_is_not_made_shorter_nor_longer_by_two_schedules(run_config, monkeypatch):
    train(run_config)
    with pytest.raises(ConfigError, match=r"run of 6,144 tokens.*: give --n-tokens 6144"):
        train(longer(run_config, 20), resume=True)
    with pytest.raises(ConfigError, match=r"\(d_sae, n_tokens differ\)"):
        train(longer(run_config, d_sae=(32,)), resume=True)
    stopped_after(longer(run_config), 30, monkeypatch, resume=True)
    with pytest.raises(ConfigError, match="was made longer with --on-longer redecay"):
        train(longer(run_config), resume=True, on_longer="extend")
    with pytest.raises(ConfigError, match="already holds a run"):
        train(longer(run_config))


def test_the_rate_goes_by_the_added_steps(run_config, monkeypatch):
    from saelab.training import learner as learner_module

    train(run_config)
    rates = []
    step = learner_module.Learner.step

    def recorded(self, batch):
        output = step(self, batch)
        rates.append(self.optimizer.param_groups[0]["lr"] / self.config.learning_rate)
        return output

    monkeypatch.setattr(learner_module.Learner, "step", recorded)
    train(longer(run_config), resume=True)
    assert len(rates) == 2 * (LONGER - STEPS)  # two dictionaries
    decay = 0.2 * (LONGER - STEPS)
    expected = [min(1.0, (LONGER - at) / decay) for at in range(STEPS, LONGER)]
    torch.testing.assert_close(torch.tensor(rates[::2]), torch.tensor(expected))
