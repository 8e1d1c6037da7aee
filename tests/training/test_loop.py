"""What the loop itself guards against."""

import dataclasses
import itertools

import pytest
import torch

from saelab.errors import ActivationError, ResourceError
from saelab.formats.files import read_json
from saelab.sparse import SparseCodes
from saelab.training.config import OptimizerConfig
from saelab.training.interface import StepOutput, TrainingBatch
from saelab.training.loop import step_figures
from saelab.training.run import train
from saelab.training.schedule import Schedule


def test_a_loss_that_explodes_stops_the_run_in_words_and_keeps_the_checkpoint(run_config):
    wild = dataclasses.replace(
        run_config, k=(4,), optimizer=OptimizerConfig(learning_rate=1e38, clip_norm=None)
    )
    with pytest.raises(ActivationError, match=r"reconstruction loss is .*learning-rate"):
        train(wild)
    assert read_json(wild.out / "run.json")["status"] == "running"


def test_a_run_that_learns_nothing_says_so_and_one_that_learns_does_not(run_config, caplog):
    from saelab.training.methods import MethodOptions
    from saelab.training.methods.topk import TopKOptions

    short = dataclasses.replace(run_config, k=(4,), n_tokens=256 * 12)
    train(short)
    assert "diverged" not in caplog.text
    options = MethodOptions(topk=TopKOptions(learning_rate=1000.0))
    train(dataclasses.replace(short, options=options, out=short.out.with_name("wild")))
    assert "topk-d64-k4-s0: FVU is" in caplog.text and "lower its learning rate" in caplog.text


def test_a_width_that_no_memory_holds_is_refused_before_it_is_allocated(run_config):
    huge = dataclasses.replace(run_config, d_sae=(10**13,))
    with pytest.raises(ResourceError, match=r"10,000,000,000,000 latents.*GB.*lower --d-sae"):
        train(huge)
    assert not huge.out.exists()


def test_learning_rate_rises_stays_and_falls_to_nearly_zero():
    config = OptimizerConfig(warmup_fraction=0.1, decay_fraction=0.2)
    factors = [Schedule.of(100).rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[80] == 1.0
    assert factors[99] == pytest.approx(0.05)
    assert all(a >= b for a, b in itertools.pairwise(factors[80:]))
    flat = OptimizerConfig(warmup_fraction=0.0, decay_fraction=0.0)
    assert {Schedule.of(100).rate_factor(step, flat) for step in range(100)} == {1.0}


def test_a_batch_of_equal_rows_has_no_fvu_and_ends_no_run():
    rows = torch.ones(4, 3)
    codes = SparseCodes.from_dense(torch.eye(4, 5))
    output = StepOutput({"reconstruction": torch.tensor(0.5)}, codes, rows / 2)
    figures = step_figures(TrainingBatch(rows, rows, None, step=0), output)
    assert figures["fvu"] is None and figures["loss"] == 0.5 and figures["l0"] == 1.0
    rows = rows * torch.arange(4.0).view(4, 1)
    output = StepOutput({"reconstruction": torch.tensor(0.5)}, codes, rows / 2)
    assert step_figures(TrainingBatch(rows, rows, None, step=0), output)["fvu"] > 0


def test_methods_are_calibrated_and_measured_where_they_were_trained(run_config, monkeypatch):
    """No weight moves to the CPU before its dictionary is finished."""
    from saelab.training.methods import METHODS

    moved = []
    to_dictionary, cpu = METHODS["batch_topk"].to_dictionary, torch.nn.Module.cpu

    def recorded(self, normalisation):
        moved.append("finished")
        return to_dictionary(self, normalisation)

    def recorded_cpu(self):
        if isinstance(self, METHODS["batch_topk"]):
            moved.append("moved")
        return cpu(self)

    monkeypatch.setattr(METHODS["batch_topk"], "to_dictionary", recorded)
    monkeypatch.setattr(torch.nn.Module, "cpu", recorded_cpu)
    train(dataclasses.replace(run_config, methods=("batch_topk",), k=(4,), calibration_rows=512))
    assert moved == ["finished", "moved"]


def test_steps_are_timed_by_events_in_the_queue_of_a_gpu(monkeypatch):
    from saelab.training import learner as learner_module

    class Event:
        clock = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.clock += 2.0
            self.time = Event.clock

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.time - self.time

    class Module:
        pass

    Module.Event = Event
    monkeypatch.setattr(learner_module.torch, "get_device_module", lambda device: Module)
    clock = learner_module.StepClock(torch.device("cuda"))
    assert clock.seconds_per_step() is None
    for _ in range(clock.PENDING + 44):
        clock.start()
        clock.stop()
    assert len(clock._events) <= clock.PENDING
    assert clock.seconds_per_step() == pytest.approx(0.002) and not clock._events


def test_checkpoints_carry_the_random_states_of_gpus(tmp_path, monkeypatch):
    from saelab.formats.files import read_tensors
    from saelab.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

    restored = {}
    states = [torch.arange(16, dtype=torch.uint8), torch.ones(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, i: restored.update({i: state}))
    learners = {"a": {"method.x": torch.zeros(2)}}
    save_checkpoint(tmp_path, Checkpoint(3, "hash", {"position": 1}, learners))
    assert set(load_checkpoint(tmp_path, "hash").learners) == {"a"}
    assert restored.keys() == {0, 1} and torch.equal(restored[0], states[0])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert load_checkpoint(tmp_path, "hash").step == 3
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    save_checkpoint(tmp_path, Checkpoint(4, "hash", {"position": 1}, learners))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert load_checkpoint(tmp_path, "hash").step == 4
    file = next(tmp_path.glob("*.safetensors"))
    assert set(read_tensors(file)) == {"random_state", "learner/a/method.x"}
