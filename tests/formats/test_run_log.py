"""The run's logs: JSONL that survives a kill, and Weights & Biases through a stand-in."""

import sys
from types import SimpleNamespace

import pytest

from saelab.errors import ArtifactError, ResourceError
from saelab.formats.run_log import JsonlLog, RunLog, WandbLog, read_log


class FakeRun:
    def __init__(self):
        self.lines = []
        self.finished = False

    def log(self, figures, step):
        self.lines.append((step, figures))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    fake = SimpleNamespace(run=FakeRun(), calls=[])

    def init(**settings):
        fake.calls.append(settings)
        return fake.run

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_project_name_config_and_prefixed_figures(wandb):
    log = WandbLog("project", "run", {"k": 32})
    assert isinstance(log, RunLog)
    (call,) = wandb.calls
    assert (call["project"], call["name"], call["config"]) == ("project", "run", {"k": 32})
    log.write(20, {"dictionary": "topk-d64", "loss": 0.5, "l0": 32})
    log.write(40, {"rate": 1e-3})
    assert wandb.run.lines == [
        (20, {"topk-d64/loss": 0.5, "topk-d64/l0": 32}),
        (40, {"rate": 1e-3}),
    ]
    assert not wandb.run.finished
    log.close()
    assert wandb.run.finished


def test_wandb_that_cannot_start_says_what_to_do(wandb):
    def init(**settings):
        raise OSError("no API key")

    wandb.init = init
    with pytest.raises(ResourceError, match=r"no API key.*WANDB_MODE=offline.*--wandb-project"):
        WandbLog("project", "run", {})


def test_jsonl_is_appended_cut_back_on_resuming_and_read(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    log = JsonlLog(path)
    for step in (20, 40, 60):
        log.write(step, {"dictionary": "d", "tokens": step, "loss": step / 100})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 80, "lo')
    assert [line["step"] for line in read_log(path)] == [20, 40, 60]
    log = JsonlLog(path, keep_up_to=40)
    log.write(60, {"dictionary": "d", "tokens": 60, "loss": 9.0})
    log.close()
    assert [line["loss"] for line in read_log(path)] == [0.2, 0.4, 9.0]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ArtifactError, match="line 1, is not JSON"):
        read_log(path)
