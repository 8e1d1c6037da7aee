"""Every command that writes, on a model and data so small that each takes about a second.

A new command is a line in `COMMANDS`. What it reads is what earlier lines made.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import shlex
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from equal import differences, fingerprint
from trials import Child, Outcome, run

TESTS = Path(__file__).resolve().parents[1]
HOOK = "blocks.1.hook_resid_post"
DICTIONARIES = "run/dictionaries/topk-d48-k4-s0 run/dictionaries/topk-d48-k4-s1"
PLANTED = "planted/smoke/train/dictionaries/topk-d128-k2-s0"
SMALL = "--batch-contexts 4 --device cpu"


@dataclass(frozen=True)
class Command:
    """A command that writes, with what it is run on."""

    name: str
    line: str
    """Words after `saelab`."""
    after: str = ""
    """The command whose results it reads."""
    inputs: str = ""
    """What of the world's own folders it reads."""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)

    def reading(self, inputs: Path) -> Command:
        """The same command, with its inputs named by where they are: artifacts record that."""
        names = self.inputs.split()
        words = [str(inputs / word) if word in names else word for word in self.words]
        return replace(self, line=shlex.join(words))


COMMANDS = (
    Command(
        "cache",
        f"cache cache --model model --hook-points blocks.0.hook_resid_post {HOOK}"
        " --text.source text --context-length 32 --n-tokens 4096 --batch-contexts 8"
        " --contexts-per-shard 16 --model-dtype float32 --device cpu --gradients",
        inputs="model text",
    ),
    Command(
        "cache adopt",
        "cache adopt arrays.npy --out adopted --seed 1",
        inputs="arrays.npy",
    ),
    Command(
        "train",
        f"train --cache cache --hook-point {HOOK} --out run --d-sae 48 --k 4 --seeds 0 1"
        " --n-tokens 6400 --batch-rows 128 --device cpu --checkpoint-every-steps 10"
        " --log-every-steps 5",
        after="cache",
        inputs="model text",
    ),
    Command(
        "train stream",
        f"train --model model --hook-point {HOOK} --out streamed --d-sae 32 --k 4 --n-tokens 3072"
        " --batch-rows 128 --device cpu --checkpoint-every-steps 5 --stream.text.source text"
        " --stream.context-length 32 --stream.model-dtype float32 --stream.n-tokens 4096"
        " --stream.batch-contexts 8 --stream-pool-rows 512",
        inputs="model text",
    ),
    Command(
        "finetune",
        f"finetune {DICTIONARIES.split()[0]} --out finetuned --n-steps 12 --batch-contexts 4"
        " --device cpu --checkpoint-every-steps 4",
        after="train",
        inputs="model text",
    ),
    Command(
        "tune",
        f"tune topk --cache cache --hook-point {HOOK} --out tuned --d-sae 48 --k 4 --seeds 0 1"
        " --vary learning_rate=1e-3,3e-3,1e-2 --rungs 2 --held-out-rows 512 --n-tokens 6400"
        " --batch-rows 128 --device cpu --checkpoint-every-steps 10",
        after="cache",
        inputs="model text",
    ),
    Command(
        "eval core",
        f"eval core {DICTIONARIES} --n-tokens 512 --n-loss-tokens 256 {SMALL}",
        after="train",
        inputs="model text",
    ),
    Command(
        "eval consistency",
        f"eval consistency {DICTIONARIES} --n-tokens 512 {SMALL}",
        after="train",
        inputs="model text",
    ),
    Command(
        "eval dark-matter",
        f"eval dark-matter {DICTIONARIES} --n-tokens 512 --n-loss-tokens 128 {SMALL}",
        after="train",
        inputs="model text",
    ),
    Command(
        "eval steering",
        f"eval steering {DICTIONARIES} --n-tokens 512 --n-latents 6 --n-random 6 --n-contexts 4"
        f" --prompt-tokens 8 --n-bootstrap 20 --strengths 1.0 {SMALL}",
        after="train",
        inputs="model text",
    ),
    Command(
        "features",
        f"features run --n-tokens 1536 {SMALL}",
        after="train",
        inputs="model text",
    ),
    Command(
        "features export",
        "features run --export parquet exported-features",
        after="features",
        inputs="model text",
    ),
    Command(
        "explain",
        f"explain {DICTIONARIES.split()[0]}",
        after="features",
        inputs="model text",
    ),
    Command(
        "explain asked",
        f"explain {DICTIONARIES.split()[0]} --model local --sample 16 --controls 4",
        after="features",
        inputs="model text",
    ),
    Command(
        "explain write",
        f"explain {DICTIONARIES.split()[0]} --write explained",
        after="explain",
        inputs="model text",
    ),
    Command(
        "compare",
        "compare run --out comparison --n-tokens 512 --n-loss-tokens 128 --steering-latents 6"
        f" {SMALL}",
        after="train",
        inputs="model text",
    ),
    Command("report", f"report {DICTIONARIES}", after="eval core"),
    Command(
        "export",
        f"export {DICTIONARIES.split()[0]} --to sparsify --out exported",
        after="train",
    ),
    Command(
        "import",
        f"import exported --out imported --model model --reads {HOOK} --text-source text"
        " --held-out-fraction 0.5 --context-length 32 --n-tokens 512 --device cpu",
        after="export",
        inputs="model text",
    ),
    Command("synthetic", "synthetic smoke synthetic --n-rows 4096"),
    Command("planted", "planted smoke --out planted --n-steps 30 --seeds 0 --methods topk"),
    Command(
        "eval recovery",
        f"eval recovery {PLANTED} --n-rows 512 --card card --out recovery",
        after="planted",
    ),
    Command(
        "eval supervised",
        "eval supervised judged/identity judged/always --task planted --n-fit 120 --n-interpret 120"
        " --n-eval 48 --k 2 4 --resamples 20 --out supervised --save-skylines",
        inputs="judged",
    ),
    Command(
        "quickstart",
        "quickstart --out quickstart --cache-tokens 8192 --train-tokens 8192 --d-sae 48 --k 4"
        " --eval-tokens 4096 --feature-tokens 4096",
    ),
)


STOOD_IN = ("explain asked", "eval supervised", "quickstart")
"""Commands for which `prepare_process` puts something small in place of what they name."""


@dataclass
class World:
    """A folder with inputs, and for each command what it leaves when it is not disturbed."""

    folder: Path
    commands: tuple[Command, ...] = COMMANDS
    seconds: dict[str, float] = field(default_factory=dict)
    expected: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commands = tuple(each.reading(self.folder / "inputs") for each in self.commands)

    def result(self, name: str) -> Path:
        """Folder in which a command was left to itself."""
        return self.folder / "results" / name.replace(" ", "-")

    def prepare(self, command: Command, folder: Path) -> Path:
        """A fresh folder in which a command can be started."""
        if folder.exists():
            shutil.rmtree(folder)
        if command.after:
            shutil.copytree(self.result(command.after), folder, symlinks=True)
        else:
            folder.mkdir(parents=True)
        for name in command.inputs.split():
            if not (folder / name).exists():
                (folder / name).symlink_to(self.folder / "inputs" / name)
        return folder

    def build(self, *, twice: bool = True) -> World:
        """Make the inputs, and run every command; twice, to know that both leave the same."""
        make_inputs(self.folder / "inputs")
        for command in self.commands:
            folder = self.prepare(command, self.result(command.name))
            child = Child(command.words, folder)
            first = child.wait(seconds=300)
            child.import_its_modules()
            self._require(command, first)
            self.seconds[command.name] = first.seconds
            self.expected[command.name] = fingerprint(folder)
            if not twice:
                continue
            again = self.prepare(command, self.folder / "again")
            second = run(command.words, again)
            self._require(command, second)
            self.seconds[command.name] = second.seconds
            differing = differences(fingerprint(again), self.expected[command.name])
            if differing:
                raise SystemExit(f"{command.name} is not deterministic: {differing}")
        return self

    def _require(self, command: Command, outcome: Outcome) -> None:
        if outcome.code != 0:
            raise SystemExit(f"saelab {command.line}\n{outcome.text}\n{outcome.errors}")


def load(name: str, file: Path) -> ModuleType:
    """A helper module of another folder of tests."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class AskedModel:
    """A language model that answers at once, as the tests of `saelab explain` want it."""

    name, concurrency = "asked", 1

    def __init__(self) -> None:
        self._answer = load("fake_endpoint", TESTS / "explain" / "fake_endpoint.py").answer_rightly

    def ask(self, question: Any) -> Any:
        """What was asked for, at a price of one token."""
        from saelab.explain.endpoint import Answer

        return Answer(self._answer(question.system, question.user), 1, 1)


def make_inputs(folder: Path) -> None:
    """Models, a text, and dictionaries for the planted task; the embedded model is put aside."""
    conftest, planted = prepare_process(folder)
    conftest.write_tiny_llama(folder / "model")
    chance = random.Random(0)
    (folder / "text").mkdir()
    for index in range(100):
        words = " ".join(chance.choices(conftest.WORDS, k=60))
        (folder / "text" / f"{index:02}.txt").write_text(words)
    import numpy

    arrays = numpy.random.default_rng(0).standard_normal((40_000, 16), dtype=numpy.float32)
    numpy.save(folder / "arrays.npy", arrays)
    (folder / "judged").mkdir()
    planted.planted_candidates(folder / "judged", ("identity", "always"))
    # Has the hook point that quickstart reads.
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 14}
    conftest.write_tiny_llama(folder / "embedded", max_position_embeddings=256, **shape)


def prepare_process(inputs: Path) -> tuple[ModuleType, ModuleType]:
    """Import what commands need, once; put small stand-ins where a command names its own model."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    import torch

    torch.set_num_threads(1)
    import saelab.evals.supervised.judge as judge
    import saelab.explain.run as explain
    import saelab.features.text_pass as text_pass
    import saelab.model.model_files as model_files
    import saelab.text.contexts as contexts
    import saelab.text.documents as documents
    from saelab.cli import COMMANDS as MODULES

    for command in MODULES.values():
        importlib.import_module(command.module)
    conftest = load("faults_conftest", TESTS / "conftest.py")
    planted = load("planted", TESTS / "evals" / "supervised" / "planted.py")
    judge.load_model_and_task = lambda config: (planted.PlantedModel(), planted.planted_task())
    explain.LocalModel = lambda *_, **__: AskedModel()
    found = model_files.resolve_model

    def resolve(name: str) -> model_files.ModelFiles:
        if name != model_files.EMBEDDED_MODEL:
            return found(name)
        return model_files.ModelFiles(name=name, folder=inputs / "embedded")

    # Several shards of a small text, so that there is something to go on from.
    text_pass.LEAST_SHARD_TOKENS = text_pass.BUFFERED_TOKENS = 256
    documents.sotu_files = contexts.sotu_files = lambda: [
        (file.stem, file) for file in sorted((inputs / "text").iterdir())
    ]
    for module in list(sys.modules.values()):
        if getattr(module, "resolve_model", None) is found:
            module.resolve_model = resolve
    return conftest, planted
