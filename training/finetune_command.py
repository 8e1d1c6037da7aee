"""`saelab finetune DICTIONARY…`: train saved dictionaries on by what splicing them costs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from saelab.cache.config import DataOverrides
from saelab.config import Within, parse_arguments, problems_in, to_plain
from saelab.dictionary import Dictionary, SavedDictionary, load_dictionary, save_dictionary
from saelab.dictionary.data_spec import DataSpec, check_fit, data_spec_of, needs_model
from saelab.dictionary.live_splice import is_crosscoder
from saelab.dictionary.site_rows import site_rows
from saelab.dictionary.storage import SELF_TEST_FILE
from saelab.errors import ActivationError, ConfigError, ResourceError
from saelab.formats.files import hash_of, remedy_when_full
from saelab.formats.lock import writer_lock
from saelab.formats.run import DICTIONARIES_FOLDER, RunManifest, dictionary_folders, write_run
from saelab.formats.run_log import JsonlLog
from saelab.memory import memory_of
from saelab.model.devices import resolve_device
from saelab.text.contexts import TextBatch

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import OptimizerConfig
from .finetune import (
    ContextStream,
    FinetunedDictionary,
    Finetuner,
    SplicedFigures,
    SplicedLoss,
    spliced_figures,
    with_one_encoder,
)
from .loop import Loop
from .run import TARGET_L0_TOLERANCE
from .run_folder import (
    CHECKPOINT_FOLDER,
    METRICS_FILE,
    check_folder,
    check_same_origin,
    clear_folder,
    deciding_settings,
)
from .schedule import Schedule

logger = logging.getLogger(__name__)

CHECK_BATCHES = 4
"""Batches behind those trained on, that what was gained is measured on."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(DataOverrides):
    """How saved dictionaries are trained on, all spliced into one pass of their model."""

    out: Path = Path("runs/finetune")
    """Folder of the run; the dictionaries go to `dictionaries` in it, under their names."""
    loss: SplicedLoss = "kl"
    """"kl": KL(original || spliced) of the next token. "cross_entropy": its loss when spliced."""
    reconstruction_weight: Annotated[float, Within(0)] = 1.0
    """Weight of the mean FVU of what the dictionaries write in the spliced pass, against what the
    untouched model has there."""
    n_steps: Annotated[int, Within(1)] = 200
    """Steps of the run."""
    batch_contexts: Annotated[int, Within(1)] = 4
    """Contexts in one step, from the beginning of the training text on."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.1)
    )
    """Adam. The learning rate is relative to each tensor's root mean square at the start."""
    log_every_steps: Annotated[int, Within(1)] = 5
    """Steps between lines of metrics."""
    checkpoint_every_steps: Annotated[int, Within(1)] = 50
    """Steps between checkpoints. A signal to stop saves one too."""

    def __post_init__(self) -> None:
        if problems := problems_in(self):
            raise ConfigError(problems)

    @property
    def batch_rows(self) -> int:
        """What the progress bar counts in a step."""
        return self.batch_contexts


@dataclass(frozen=True, kw_only=True)
class FinetuneCommand:
    """Train saved dictionaries on by what splicing all of them into their model costs."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Dictionaries, or runs, of which all are meant: trained together, as one set."""
    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = field(
        default_factory=FinetuneConfig, metadata={"flatten": True}
    )
    """Settings of the run."""
    resume: bool = False
    """Go on from the newest checkpoint of the run in `--out`."""
    overwrite: bool = False
    """Delete the run in `--out` and start over."""


CONFIG = FinetuneCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    command = parse_arguments(FinetuneCommand, arguments, program="saelab finetune")
    started = time.monotonic()
    run = finetune(
        dictionary_folders(command.dictionaries),
        command.config,
        resume=command.resume,
        overwrite=command.overwrite,
    )
    show(run, command.config.out)
    print(f"{time.monotonic() - started:.0f} s in all")


def finetune(
    folders: Sequence[Path],
    config: FinetuneConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Finetune saved dictionaries together, and save them under their names.

    Args:
        folders: of the dictionaries, of one model and text; no two write the same hook point.
        config: of the run.
        resume: go on from the newest checkpoint in `config.out`.
        overwrite: delete what is in `config.out` first.

    Returns:
        The content of run.json.

    Raises:
        SaelabError: in the words of what went wrong; finished work is never touched.
    """
    with writer_lock(config.out), remedy_when_full("go on with --resume"):
        run = check_folder(config, resume=resume, overwrite=overwrite)
        if run is not None and run.complete:
            logger.info("%s is complete: nothing to resume", config.out)
            return run.content
        return FinetuneRun(folders, config, run).train()


class FinetuneRun(Loop):
    """A run in its folder: dictionaries, optimizer and text, where the folder says they stand."""

    def __init__(self, folders: Sequence[Path], config: FinetuneConfig, run: RunManifest | None):
        super().__init__(config, self._save, 0, "contexts")
        self.config = config
        self.out = config.out
        saved = [load_dictionary(folder) for folder in folders]
        specs = [data_spec_of(each, config) for each in saved]
        if config.model_dtype is None:
            specs = [replace(spec, model_dtype="float32") for spec in specs]
        _check_set([each.folder for each in saved], specs)
        if specs[0].adopted is not None:
            raise ConfigError(needs_model(saved[0]))
        _require_memory(saved, resolve_device(config.device))
        self.model = specs[0].load_model(config.device)
        self.model.require_next_token("losses")
        for each, spec in zip(saved, specs, strict=True):
            check_fit(self.model, spec, each)
        self.tuned = [
            FinetunedDictionary(each, spec, self.model.device)
            for each, spec in zip(saved, specs, strict=True)
        ]
        self.stream = ContextStream(self.model, specs[0], config.batch_contexts)
        schedule = Schedule.of(config.n_steps)
        self.tuner = Finetuner(self.tuned, config.optimizer, schedule)
        plain = to_plain(config)
        self.record: dict[str, Any] = {
            "seed": 0,
            "config": plain,
            "made_from": {
                "dictionaries": {each.folder.name: each.content_hash for each in saved},
                "text": specs[0].text_described(),
            },
            "settings_hash": hash_of(deciding_settings(plain)),
        }
        if run is None:
            clear_folder(self.out)
            write_run(self.out, "running", **self.record)
            return
        check_same_origin(run, self.record["made_from"])
        checkpoint = load_checkpoint(self.out / CHECKPOINT_FOLDER, run.settings_hash)
        if checkpoint is not None:
            self.stream.restore(checkpoint.stream)
            self.tuner.restore(checkpoint.learners["all"])
            self.step = checkpoint.step

    def train(self) -> dict[str, Any]:
        """Train to the end and save the dictionaries; the content of run.json."""
        with closing(JsonlLog(self.out / METRICS_FILE, keep_up_to=self.step)) as self.log:
            self.run()
        return write_run(
            self.out, "complete", **self.record, excluded={}, dictionaries=self._finish()
        )

    def _take_step(self) -> SplicedFigures:
        now = [(each.dictionary, each.spec) for each in self.tuned]
        figures = self._figures(now, *self.stream.next_batch(), gradients=True)
        self.tuner.step(figures.loss, self.step)
        self.step += 1
        return figures

    def _figures(
        self,
        dictionaries: Sequence[tuple[Dictionary, DataSpec]],
        batch: TextBatch,
        first: int,
        *,
        gradients: bool,
    ) -> SplicedFigures:
        return spliced_figures(
            self.model,
            dictionaries,
            batch,
            loss=self.config.loss,
            reconstruction_weight=self.config.reconstruction_weight,
            first_context=first,
            gradients=gradients,
        )

    def _log_step(self, outputs: SplicedFigures) -> str:
        whole = {
            "loss": float(outputs.loss.detach()),
            "kl": float(outputs.kl.detach()),
            "cross_entropy": float(outputs.cross_entropy.detach()),
            "cross_entropy_clean": outputs.clean,
        }
        for each, fvu, l0 in zip(self.tuned, outputs.fvu, outputs.l0, strict=True):
            of_one = {"dictionary": each.saved.folder.name, "fvu": float(fvu.detach()), "l0": l0}
            self.log.write(self.step, of_one | whole)
        return f"KL {whole['kl']:.3f}"

    def _check_finite_weights(self) -> None:
        for name, tensor in self.tuner.named.items():
            if not bool(tensor.isfinite().all()):
                raise ActivationError(
                    f"{name} is not finite after step {self.step}; the last checkpoint is "
                    "untouched: start over with a lower --optimizer.learning-rate"
                )

    def _save(self, step: int) -> None:
        states = {"all": self.tuner.state()}
        name = self.record["settings_hash"]
        checkpoint = Checkpoint(step, name, self.stream.state(), states)
        save_checkpoint(self.out / CHECKPOINT_FOLDER, checkpoint)

    @torch.no_grad()
    def _finish(self) -> dict[str, dict[str, Any]]:
        """Save every dictionary, with what was gained on the batches behind those trained on."""
        device = self.model.device
        begun = [
            (with_one_encoder(e.saved.dictionary, e.spec.site, device), e.spec) for e in self.tuned
        ]
        now = [(each.dictionary, each.spec) for each in self.tuned]
        batches = [self.stream.next_batch() for _ in range(CHECK_BATCHES)]
        before, after = (
            [self._figures(of, *batch, gradients=False) for batch in batches] for of in (begun, now)
        )
        of_set = {
            f"{name}_{when}": _mean([getattr(each, name) for each in figures])
            for name in ("kl", "cross_entropy")
            for when, figures in (("before", before), ("after", after))
        } | {"cross_entropy_clean": _mean([each.clean for each in before])}
        (batch, first), results = batches[0], {}
        for index, each in enumerate(self.tuned):
            name = each.saved.folder.name
            captured = self.model.capture(batch.tokens, each.spec.site.hook_points)
            rows = site_rows(self.model, each.spec, batch, captured, first).inputs
            figures = {
                "fvu": _mean([of.fvu[index] for of in after]),
                "fvu_before": _mean([of.fvu[index] for of in before]),
                "l0": _mean([of.l0[index] for of in after]),
                "l0_before": _mean([of.l0[index] for of in before]),
            }
            if abs(figures["l0"] / max(figures["l0_before"], 1e-9) - 1) > TARGET_L0_TOLERANCE:
                logger.warning(
                    "%s: L0 went from %.1f to %.1f, since thresholds are not trained",
                    name,
                    figures["l0_before"],
                    figures["l0"],
                )
            tokens = self.step * batch.tokens.numel()
            of_run = {"settings": self.record["config"], "n_tokens": tokens, **figures, **of_set}
            plain = Path(DICTIONARIES_FOLDER) / name
            save_dictionary(
                self.out / plain,
                with_one_encoder(each.dictionary, each.spec.site),
                self_test_inputs=rows.cpu(),
                training={
                    **each.saved.manifest.get("config", {}),
                    "measured_l0": figures["l0"],
                    "finetuned": {"from": each.saved.content_hash, **of_run},
                },
                made_from=each.saved.made_from,
                seed=each.saved.manifest.get("seed"),
                site=each.saved.site,
            )
            results[name] = {"folder": str(plain), **figures, **of_set}
        return results


def _mean(values: Sequence[Tensor | float]) -> float:
    return sum(map(float, values)) / len(values)


def _require_memory(saved: Sequence[SavedDictionary], device: torch.device) -> None:
    """Refuse dictionaries that the device cannot hold, before anything is read or copied.

    Raises:
        ResourceError: they are too many, or too large.
    """
    names = [
        each.folder / name
        for each in saved
        for name in each.manifest["files"]
        if name.endswith(".safetensors") and name != SELF_TEST_FILE
    ]
    # Weights, their gradients, Adam's two moments, and as they were, in float32.
    needed, there = 5 * sum(name.stat().st_size for name in names), memory_of(device)
    if there is not None and needed > there:
        what = saved[0].folder if len(saved) == 1 else f"{len(saved)} dictionaries"
        raise ResourceError(
            f"finetuning {what} takes {needed / 1e9:,.1f} GB (weights, gradients, Adam's moments "
            f"and a copy), and {device} has {there / 1e9:,.1f} GB: finetune fewer at once, or "
            "train a smaller one"
        )


def _check_set(folders: Sequence[Path], specs: Sequence[DataSpec]) -> None:
    """Refuse dictionaries that cannot be spliced into one pass, or saved side by side.

    Raises:
        ConfigError: they differ in model, text or rows, two folders have one name, or a crosscoder
            is not alone.
    """
    problems = [
        f"two of the dictionaries are called {name}: rename a folder"
        for name, count in Counter(folder.name for folder in folders).items()
        if count > 1
    ]
    for folder, spec in zip(folders, specs, strict=True):
        if is_crosscoder(spec.site) and len(specs) > 1:
            problems.append(
                f"{folder} is a crosscoder, whose hook points are replaced one at a time and not "
                "together with other dictionaries: finetune it alone"
            )
        for name in ("model_key", "text", "context_length", "token_filter"):
            if getattr(spec, name) != getattr(specs[0], name):
                problems.append(
                    f"{folder} and {folders[0]} differ in their {name.replace('_', ' ')}: what is "
                    "trained together is spliced into one pass"
                )
    if problems:
        raise ConfigError(problems)


def show(run: dict[str, Any], out: Path) -> None:
    """Print what was gained."""
    from rich.console import Console
    from rich.table import Table

    table = Table("dictionary", "FVU before", "FVU", "L0 before", "L0")
    for name, of in run["dictionaries"].items():
        cells = (f"{of['fvu_before']:.4f}", f"{of['fvu']:.4f}")
        table.add_row(name, *cells, f"{of['l0_before']:.1f}", f"{of['l0']:.1f}")
    Console().print(table)
    of = next(iter(run["dictionaries"].values()))
    print(
        f"all spliced in, on {CHECK_BATCHES} batches behind those trained on: "
        f"KL {of['kl_before']:.4f} before, {of['kl_after']:.4f} now; cross-entropy "
        f"{of['cross_entropy_before']:.4f} before, {of['cross_entropy_after']:.4f} now, "
        f"{of['cross_entropy_clean']:.4f} of the untouched model (nats)"
    )
    print(f"dictionaries: {out / DICTIONARIES_FOLDER}")
