"""Whole runs: files, exact resume after a stop or a kill, and every refusal."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from saelab.cache.config import HarvestConfig
from saelab.config import to_yaml
from saelab.dictionary import load_dictionary
from saelab.errors import (
    ActivationError,
    ArtifactError,
    ConfigError,
    ResourceError,
    Stopped,
    TextError,
)
from saelab.formats.files import read_json, read_tensors
from saelab.formats.lock import writer_lock
from saelab.formats.manifest import write_manifest
from saelab.formats.run_log import read_log
from saelab.text.contexts import TextConfig
from saelab.training.config import TrainConfig
from saelab.training.run import train

NAMES = ["topk-d64-k4-s0", "topk-d64-k8-s0"]


def weights_of(run):
    return {
        path.parent.name: path.read_bytes()
        for path in sorted(run.glob("dictionaries/*/sae_weights.safetensors"))
    }


def log_without_times(run):
    return [
        {key: value for key, value in line.items() if key != "tokens_per_second"}
        for line in read_log(run / "metrics.jsonl")
    ]


def test_a_run_leaves_dictionaries_metrics_and_a_record(run_config):
    run = train(run_config)
    assert run["status"] == "complete" and list(run["dictionaries"]) == NAMES
    assert read_json(run_config.out / "run.json") == run
    saved = load_dictionary(run_config.out / "dictionaries" / NAMES[0])
    assert saved.dictionary.k == 4
    assert saved.manifest["config"]["target_l0"] == 4
    assert saved.manifest["config"]["measured_l0"] == pytest.approx(4, abs=0.5)
    assert saved.hook_point == "blocks.1.hook_resid_post"
    assert saved.made_from["cache_hash"] and saved.made_from["model_hash"]
    lines = read_log(run_config.out / "metrics.jsonl")
    assert [line["step"] for line in lines if line["dictionary"] == NAMES[0]] == [5, 10, 15, 20, 24]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_dictionaries_of_one_run_equal_those_of_runs_of_their_own(run_config, tmp_path):
    train(run_config)
    alone = dataclasses.replace(run_config, k=(8,), out=tmp_path / "alone")
    train(alone)
    assert weights_of(alone.out)[NAMES[1]] == weights_of(run_config.out)[NAMES[1]]


def test_stopped_by_sigterm_and_resumed_is_bit_identical(run_config, tmp_path, monkeypatch):
    whole = dataclasses.replace(run_config, out=tmp_path / "whole")
    train(whole)

    from saelab.training import learner as learner_module

    calls = []
    step = learner_module.Learner.step

    def step_then_signal(self, batch):
        calls.append(batch.step)
        if len(calls) == 23:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(learner_module.Learner, "step", step_then_signal)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM after step 12 of 24.*--resume"):
        train(run_config)
    assert read_json(run_config.out / "checkpoint" / "checkpoint.json")["step"] == 12
    monkeypatch.undo()
    train(run_config, resume=True)
    assert weights_of(run_config.out) == weights_of(whole.out)
    assert log_without_times(run_config.out) == log_without_times(whole.out)


@pytest.mark.slow
def test_killed_at_random_points_and_resumed_is_bit_identical(run_config, tmp_path):
    config = dataclasses.replace(run_config, n_tokens=256 * 150, checkpoint_every_steps=5)
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    program = (
        "import sys, torch; torch.set_num_threads(1); from saelab.cli import main; "
        "sys.exit(main(sys.argv[1:]))"
    )

    def command(settings, *extra):
        recipe = tmp_path / f"{settings.out.name}.yaml"
        recipe.write_text(to_yaml(settings))
        return [sys.executable, "-c", program, "train", str(recipe), *extra]

    subprocess.run(command(whole), check=True, capture_output=True, timeout=300)
    chance = random.Random(0)
    kills = 0
    for _ in range(3):
        resume = ["--resume"] if (config.out / "run.json").exists() else []
        process = subprocess.Popen(
            command(config, *resume), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        pointer = config.out / "checkpoint" / "checkpoint.json"
        before = pointer.read_bytes() if pointer.exists() else b""
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if pointer.exists() and pointer.read_bytes() != before:
                time.sleep(chance.uniform(0.0, 0.3))
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
    assert kills >= 1
    subprocess.run(command(config, "--resume"), check=True, capture_output=True, timeout=300)
    assert weights_of(config.out) == weights_of(whole.out)
    assert log_without_times(config.out) == log_without_times(whole.out)


def test_streaming_without_a_cache_trains_and_resumes(run_config, tiny_harvest, tmp_path):
    config = dataclasses.replace(
        run_config, cache=None, stream=tiny_harvest, stream_pool_rows=1024, k=(4,)
    )
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    train(whole)

    class Halt(Exception):
        pass

    from saelab.training import run as run_module

    save = run_module.save_checkpoint

    def save_then_halt(folder, checkpoint):
        save(folder, checkpoint)
        if checkpoint.step == 14:
            raise Halt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "save_checkpoint", save_then_halt)
        with pytest.raises(Halt):
            train(config)
    train(config, resume=True)
    assert weights_of(config.out) == weights_of(whole.out)


def test_an_existing_run_is_never_touched_without_being_asked(run_config, tmp_path):
    train(run_config)
    before = weights_of(run_config.out)
    with pytest.raises(ConfigError, match="already holds a run: give --resume"):
        train(run_config)
    with pytest.raises(ConfigError, match=r"other settings \(d_sae differ\)"):
        train(dataclasses.replace(run_config, d_sae=(32,)), resume=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        train(run_config, resume=True, overwrite=True)
    assert train(run_config, resume=True)["status"] == "complete"
    assert weights_of(run_config.out) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not of a saelab run"):
            train(dataclasses.replace(run_config, out=foreign), overwrite=overwrite)
    assert (foreign / "thesis.txt").exists()
    train(run_config, overwrite=True)
    assert weights_of(run_config.out) == before


def test_overwriting_gives_up_the_old_run_only_when_the_new_one_can_start(run_config, tmp_path):
    train(run_config)
    before = weights_of(run_config.out)
    with pytest.raises(ArtifactError):
        train(dataclasses.replace(run_config, cache=tmp_path / "nowhere"), overwrite=True)
    (run_config.out / "notes.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"notes.txt"):
        train(run_config, overwrite=True)
    assert weights_of(run_config.out) == before
    (run_config.out / "notes.txt").unlink()
    (run_config.out / "run.json.123.partial").write_text("{")
    assert train(run_config, overwrite=True)["status"] == "complete"


def test_a_half_written_record_does_not_block_a_new_run(run_config):
    run_config.out.mkdir()
    (run_config.out / "run.json.123.partial").write_text("{")
    assert train(run_config)["status"] == "complete"


def test_what_decides_nothing_may_change_on_resume(run_config):
    train(run_config)
    changed = dataclasses.replace(run_config, checkpoint_every_steps=5)
    assert train(changed, resume=True)["status"] == "complete"


def test_weights_that_break_between_logs_never_reach_the_checkpoint(run_config, monkeypatch):
    from saelab.training import learner as learner_module

    step = learner_module.Learner.step

    def step_then_break(self, batch):
        output = step(self, batch)
        if batch.step == 12:
            self.method.weights.b_enc.data[3] = float("nan")
        return output

    monkeypatch.setattr(learner_module.Learner, "step", step_then_break)
    with pytest.raises(ActivationError, match=r"weights\.\w+ is not finite after step 14"):
        train(dataclasses.replace(run_config, log_every_steps=100))
    assert read_json(run_config.out / "checkpoint" / "checkpoint.json")["step"] == 7


def test_nothing_to_resume_is_said(run_config):
    with pytest.raises(ConfigError, match="holds no run to resume"):
        train(run_config, resume=True)
    assert not run_config.out.exists()


def test_a_cache_of_another_model_or_hook_point_is_refused(run_config):
    with pytest.raises(ConfigError, match="the settings name 'smollm2-135m'"):
        train(dataclasses.replace(run_config, model="smollm2-135m"))
    with pytest.raises(ActivationError, match=r"blocks\.0\.hook_resid_post"):
        train(dataclasses.replace(run_config, hook_point="blocks.0.hook_resid_post"))
    with pytest.raises(ConfigError, match="less than one batch"):
        train(dataclasses.replace(run_config, batch_rows=6000, n_tokens=6000))
    assert not run_config.out.exists()


def test_not_finite_activations_stop_training_and_leave_the_checkpoint(run_config, monkeypatch):
    from saelab.cache.cache_stream import CacheStream

    next_batch = CacheStream.next_batch
    seen = []

    def poisoned(self):
        seen.append(0)
        if len(seen) == 10:
            raise ActivationError("shard-00000.safetensors, row 17: not finite")
        return next_batch(self)

    monkeypatch.setattr(CacheStream, "next_batch", poisoned)
    with pytest.raises(ActivationError, match="row 17"):
        train(run_config)
    assert read_json(run_config.out / "checkpoint" / "checkpoint.json")["step"] == 7
    monkeypatch.undo()
    assert train(run_config, resume=True)["status"] == "complete"


def test_a_full_disk_is_said_and_costs_no_finished_work(run_config, monkeypatch):
    import safetensors.torch

    save_file = safetensors.torch.save_file
    saved = []

    def save_until_full(tensors, path, metadata=None):
        saved.append(path)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", save_until_full)
    with pytest.raises(ResourceError, match=r"disk full .*--resume"):
        train(run_config)
    monkeypatch.undo()
    checkpoint = run_config.out / "checkpoint"
    assert read_json(checkpoint / "checkpoint.json")["step"] == 14
    assert not list(checkpoint.glob("*.partial"))
    assert train(run_config, resume=True)["status"] == "complete"


def test_a_damaged_checkpoint_is_named(run_config, monkeypatch):
    from saelab.training import loop

    monkeypatch.setattr(loop.TrainingLoop, "_stop_if_asked", _raise_after(9))
    with pytest.raises(Stopped):
        train(run_config)
    file = next((run_config.out / "checkpoint").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"checkpoint-00000007\.safetensors is not the file"):
        train(run_config, resume=True)
    pointer = run_config.out / "checkpoint" / "checkpoint.json"
    good = pointer.read_text()
    pointer.write_text(good.replace('"step": 7', '"step": 8'))
    with pytest.raises(ArtifactError, match="incomplete or was edited"):
        train(run_config, resume=True)
    pointer.write_text(good)
    file.unlink()
    with pytest.raises(ArtifactError, match="is missing: start with --overwrite"):
        train(run_config, resume=True)


def _raise_after(steps):
    def stop(self, request, last):
        if self.step == steps:
            raise Stopped("halt")

    return stop


def test_a_checkpoint_holds_everything_and_nothing_pickled(run_config):
    train(run_config)
    pointer = read_json(run_config.out / "checkpoint" / "checkpoint.json")
    tensors = read_tensors(run_config.out / "checkpoint" / pointer["file"])
    assert {name.split("/")[0] for name in tensors} == {"random_state", "learner"}
    assert pointer["stream"]["position"] + pointer["stream"]["epoch"] > 0
    assert any("exp_avg_sq" in name for name in tensors)
    assert any("tokens_since_fired" in name for name in tensors)
    assert len(list((run_config.out / "checkpoint").iterdir())) == 2


def test_fused_adam_respects_memory_layouts():
    """The fused step walks memory; it must agree with the plain one on a transposed parameter."""
    parameter = torch.nn.Parameter(torch.randn(40, 7).T)
    other = torch.nn.Parameter(parameter.detach().clone().contiguous())
    fused = torch.optim.Adam([parameter], lr=0.1, fused=True)
    plain = torch.optim.Adam([other], lr=0.1, foreach=False)
    for _ in range(3):
        gradient = torch.randn(40, 7).T
        parameter.grad, other.grad = gradient, gradient.clone().contiguous()
        fused.step()
        plain.step()
    torch.testing.assert_close(parameter, other)


def test_every_problem_of_a_config_is_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainConfig(methods=("topp",), k=(64, 0), d_sae=(32,), batch_rows=0, seeds=(1, 1))
    text = str(caught.value)
    for part in (
        "unknown method 'topp'; did you mean 'topk'?",
        "k = 64 is more than d_sae = 32",
        "k contains 0",
        "batch_rows is 0",
        "seeds names a value twice: 1, 1",
    ):
        assert part in text
    assert len(caught.value.problems) == 5


def test_a_run_resumes_from_a_moved_cache_named_in_any_way(run_config, tmp_path, monkeypatch):
    from saelab.training import loop

    monkeypatch.setattr(loop.TrainingLoop, "_stop_if_asked", _raise_after(9))
    with pytest.raises(Stopped):
        train(run_config)
    monkeypatch.undo()
    moved = shutil.copytree(run_config.cache, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(run_config, cache=moved.relative_to(tmp_path))
    assert train(config, resume=True)["status"] == "complete"
    whole = dataclasses.replace(run_config, out=tmp_path / "whole")
    train(whole)
    assert weights_of(run_config.out) == weights_of(whole.out)


def test_a_run_is_not_resumed_on_other_activations(run_config, tmp_path, monkeypatch):
    from saelab.training import loop

    monkeypatch.setattr(loop.TrainingLoop, "_stop_if_asked", _raise_after(9))
    with pytest.raises(Stopped):
        train(run_config)
    monkeypatch.undo()
    record = read_json(run_config.out / "run.json")
    record["made_from"]["cache_hash"] = "0" * 64
    write_manifest(run_config.out / "run.json", record)
    with pytest.raises(ConfigError, match=r"other activations \(cache_hash differ\)"):
        train(run_config, resume=True)


def test_options_of_methods_not_trained_decide_nothing(run_config):
    train(run_config)
    path = run_config.out / "run.json"
    record = read_json(path)
    # As a version wrote it that knew neither this method nor this option.
    del record["config"]["options"]["jumprelu"]
    del record["config"]["options"]["topk"]["learning_rate"]
    del record["config"]["verify"]
    write_manifest(path, record)
    assert train(run_config, resume=True)["status"] == "complete"
    record["config"]["options"]["topk"]["learning_rate"] = 0.5
    write_manifest(path, record)
    with pytest.raises(ConfigError, match=r"\(options\.topk\.learning_rate differ\)"):
        train(run_config, resume=True)


def test_overwriting_keeps_labels_and_results_of_others(run_config):
    train(run_config)
    dictionary = run_config.out / "dictionaries" / NAMES[0]
    kept = [dictionary / "feature_labels.sqlite", dictionary / "evals" / "core.json"]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"years of work")
    train(dataclasses.replace(run_config, k=(8,)), overwrite=True)
    assert [path.read_bytes() for path in kept] == [b"years of work"] * 2
    assert not (dictionary / "saelab.json").exists()


def test_a_stray_file_does_not_block_resuming(run_config):
    train(run_config)
    (run_config.out / "nohup.out").write_text("output")
    assert train(run_config, resume=True)["status"] == "complete"


def test_a_flipped_bit_in_the_log_or_a_lost_checkpoint(run_config, monkeypatch, caplog):
    from saelab.training import loop

    monkeypatch.setattr(loop.TrainingLoop, "_stop_if_asked", _raise_after(20))
    with pytest.raises(Stopped):
        train(run_config)
    monkeypatch.undo()
    log = run_config.out / "metrics.jsonl"
    content = bytearray(log.read_bytes())
    content[3] ^= 0x80
    log.write_bytes(content)
    away = (run_config.out / "checkpoint").rename(run_config.out.parent / "away")
    with pytest.raises(ArtifactError, match=r"trained 20 steps and its checkpoint is missing"):
        train(run_config, resume=True)
    away.rename(run_config.out / "checkpoint")
    assert train(run_config, resume=True)["status"] == "complete"
    assert "damaged lines are left out (1)" in caplog.text


def test_a_second_process_is_told_who_trains(run_config):
    with (
        writer_lock(run_config.out),
        pytest.raises(ConfigError, match=rf"is being written by process {os.getpid()} on "),
    ):
        train(run_config)
    assert not run_config.out.exists()


def test_equal_rows_after_training_leave_fvu_undefined_and_cost_nothing(
    run_config, monkeypatch, caplog, capsys
):
    from saelab.cache.cache_stream import CacheStream
    from saelab.training.command import show

    next_batch, seen = CacheStream.next_batch, []

    def constant_after_training(self):
        seen.append(0)
        batch = next_batch(self)
        if len(seen) <= 24:
            return batch
        return dataclasses.replace(batch, activations=torch.ones_like(batch.activations))

    monkeypatch.setattr(CacheStream, "next_batch", constant_after_training)
    with caplog.at_level("WARNING"):
        run = train(run_config)
    assert run["status"] == "complete"
    assert [figures["fvu"] for figures in run["dictionaries"].values()] == [None, None]
    assert "recorded as null" in caplog.text
    name = next(iter(run["dictionaries"]))
    saved = load_dictionary(run_config.out / "dictionaries" / name)
    assert saved.manifest["config"]["fvu_on_training_rows"] is None
    show(None, run_config, run)
    assert "undefined" in capsys.readouterr().out


def test_text_and_context_are_looked_at_before_a_model_is_loaded(
    tiny_model_folder, tmp_path, monkeypatch
):
    from saelab.cache import harvest

    def refuse(*given, **settings):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(harvest, "load_language_model", refuse)
    (tmp_path / "x.txt").write_text("one document, of which nothing can be held out")
    shape = {"d_sae": (32,), "k": (4,), "batch_rows": 64, "n_tokens": 1280}
    for stream, error, words in (
        ({"text": TextConfig(source=str(tmp_path / "x.txt"))}, TextError, "held out"),
        ({"context_length": 4096, "n_tokens": 1 << 17}, ConfigError, "is longer than the 128"),
    ):
        streamed = HarvestConfig(model=str(tiny_model_folder), **stream)
        with pytest.raises(error, match=words):
            train(TrainConfig(stream=streamed, out=tmp_path / "run", **shape))


@pytest.mark.parametrize(("dtype", "said"), [("bfloat16", True), ("float32", False)])
def test_a_product_that_this_cpu_is_slow_at_is_said(run_config, monkeypatch, caplog, dtype, said):
    from saelab.model import devices

    monkeypatch.setattr(devices, "cpu_features", lambda: {"avx2"})
    devices.warn_if_bfloat16_is_slow.cache_clear()
    train(dataclasses.replace(run_config, product_dtype=dtype))
    assert ("give --product-dtype float32" in caplog.text) == said
