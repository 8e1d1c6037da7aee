"""The loop: read a batch once, let every dictionary learn from it, log, save, stop when asked.

It knows no method by name. All it carries from step to step is in the checkpoint: the learners'
states and the stream's, so a run that was stopped, or killed, goes on bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch

from saelab.cache.batch import ActivationBatch, RowStatistics
from saelab.cache.cache_stream import CacheStream, ErrorStream
from saelab.cache.model_stream import ModelStream
from saelab.errors import ActivationError, ConfigError, Stopped
from saelab.formats.run_log import RunLog
from saelab.interrupts import StopRequest, stop_on_signals
from saelab.memory import keep_freed_memory
from saelab.progress import progress_bar
from saelab.sparse import SparseCodes
from saelab.stats.metrics import batch_fvu, mean_l0

from .config import TrainConfig
from .interface import Normalisation, StepOutput, TrainingBatch
from .learner import Learner, synchronise

logger = logging.getLogger(__name__)

DENSITY_QUANTILES = {"density_q10": 0.1, "density_q50": 0.5, "density_q90": 0.9}
"""Logged quantiles of the latents' densities, by name."""


ActivationStream = CacheStream | ErrorStream | ModelStream
"""Endless sources of shuffled rows with one interface, saved and restored exactly."""


@runtime_checkable
class LoopSettings(Protocol):
    """What a loop is told by the settings of its run."""

    @property
    def out(self) -> Path:
        """Folder of the run."""
        ...

    @property
    def n_steps(self) -> int:
        """Steps of the run."""
        ...

    @property
    def batch_rows(self) -> int:
        """What the progress bar counts in a step."""
        ...

    @property
    def log_every_steps(self) -> int:
        """Steps between lines of metrics."""
        ...

    @property
    def checkpoint_every_steps(self) -> int:
        """Steps between checkpoints."""
        ...


class Loop(ABC):
    """The steps of a run from wherever it stands to its end, whatever a step is.

    Args:
        config: how many steps, and when to log and save.
        save: writes a checkpoint of the run after the given number of steps.
        step: steps taken already.
        unit: what `batch_rows` of the settings counts.
    """

    def __init__(
        self,
        config: LoopSettings,
        save: Callable[[int], None],
        step: int,
        unit: str = "tokens",
    ):
        self._settings, self.save, self.step, self._unit = config, save, step, unit

    def run(self) -> None:
        """Train to the end.

        Raises:
            Stopped: a signal asked for it; a checkpoint was written.
            ActivationError: a row or a loss is not finite; the last checkpoint is untouched.
        """
        config = self._settings
        keep_freed_memory()
        with (
            stop_on_signals() as stop,
            progress_bar(
                config.n_steps * config.batch_rows,
                "training",
                self._unit,
                self.step * config.batch_rows,
            ) as bar,
        ):
            while self.step < config.n_steps:
                outputs = self._take_step()
                bar.update(config.batch_rows)
                last = self.step == config.n_steps
                if last or self.step % config.log_every_steps == 0:
                    bar.set_postfix_str(self._log_step(outputs))
                if last or stop or self.step % config.checkpoint_every_steps == 0:
                    self._check_finite_weights()
                    self.save(self.step)
                self._stop_if_asked(stop, last)

    def _stop_if_asked(self, stop: StopRequest, last: bool) -> None:
        if stop and not last:
            config = self._settings
            raise Stopped(
                f"stopped by {stop.signal_name} after step {self.step} of {config.n_steps}; a "
                f"checkpoint is saved in {config.out}: continue with --resume",
                stop.signal_name,
            )

    @abstractmethod
    def _take_step(self) -> Any:
        """Take the next step and count it; what `_log_step` is to be told of it."""

    @abstractmethod
    def _log_step(self, outputs: Any) -> str:
        """Write a line to every log; what the progress bar shows."""

    @abstractmethod
    def _check_finite_weights(self) -> None:
        """Never let a checkpoint of broken weights replace a good one."""


class TrainingLoop(Loop):
    """The steps of learners on a stream.

    Args:
        stream: of activations, positioned where the run stands.
        learners: one for each dictionary, in the same state.
        logs: take the metrics.
        save: writes a checkpoint of the run after the given number of steps.
        step: steps taken already.
    """

    def __init__(
        self,
        config: TrainConfig,
        stream: ActivationStream,
        learners: list[Learner],
        logs: Sequence[RunLog],
        save: Callable[[int], None],
        *,
        step: int = 0,
    ):
        super().__init__(config, save, step)
        self.config, self.stream, self.learners, self.logs = config, stream, learners, logs
        self.device = next(learners[0].method.parameters()).device
        self.parts = parts_of(stream, config.layers, self.device)
        self._since_log = _Stopwatch(self.device)
        self._first_losses: dict[str, float | None] = {}

    def _take_step(self) -> list[StepOutput]:
        rows = self.stream.next_batch()
        self._batches = {
            layer: part.batch(rows, self.device, self.step) for layer, part in self.parts.items()
        }
        outputs = [learner.step(self._batches[learner.spec.layer]) for learner in self.learners]
        self.step += 1
        self._since_log.rows += rows.activations.shape[0]
        return outputs

    def _log_step(self, outputs: list[StepOutput]) -> str:
        seconds_per_row = self._since_log.seconds_per_row()
        shown = []
        for learner, output in zip(self.learners, outputs, strict=True):
            self._check_finite(learner, output)
            line = {
                "dictionary": learner.spec.name,
                "tokens": self.step * self.config.batch_rows,
                **step_figures(self._batches[learner.spec.layer], output),
                **learner.method.metrics(),
                "tokens_per_second": 1 / seconds_per_row if seconds_per_row else None,
            }
            for log in self.logs:
                log.write(self.step, line)
            self._watch(learner.spec.name, line.get("loss_reconstruction"), line["fvu"])
            shown.append("FVU undefined" if line["fvu"] is None else f"FVU {line['fvu']:.3f}")
        return ", ".join(shown[:4]) + ("" if len(shown) <= 4 else ", …")

    def _watch(self, name: str, loss: float | None, fvu: float | None) -> None:
        """Say so, once at the end, where a dictionary has learnt nothing.

        Of the losses only the reconstruction's is watched: weights of penalties grow by design.
        """
        first = self._first_losses.setdefault(name, loss)
        if self.step < self.config.n_steps:
            return
        if fvu is not None and fvu > 1:
            problem = f"FVU is {fvu:.3g}, worse than always predicting the mean"
        elif loss is not None and first is not None and loss > 1.5 * first:
            problem = f"the reconstruction loss grew from {first:.3g} to {loss:.3g}"
        else:
            return
        logger.warning(
            "%s: %s: training diverged or learnt nothing; lower its learning rate", name, problem
        )

    def _check_finite_weights(self) -> None:
        for learner in self.learners:
            broken = learner.first_not_finite()
            if broken is not None:
                self._give_up(learner, f"{broken} is not finite after step {self.step}")

    def _check_finite(self, learner: Learner, output: StepOutput) -> None:
        for name, loss in output.losses.items():
            value = float(loss.detach())
            if not math.isfinite(value):
                self._give_up(learner, f"the {name} loss is {value} at step {self.step}")

    def _give_up(self, learner: Learner, reason: str) -> NoReturn:
        raise ActivationError(
            f"{learner.spec.name}: {reason}; the last checkpoint is untouched: start over with a "
            "lower --optimizer.learning-rate"
        )


@dataclass(frozen=True)
class StreamPart:
    """What the dictionaries of one layer see of a stream that carries several side by side."""

    reads: slice
    """Columns of the activations."""
    writes: slice
    """Columns of the targets, and of the gradients."""
    normalisation: Normalisation

    def batch(self, rows: ActivationBatch, device: torch.device, step: int) -> TrainingBatch:
        """What a step is taken on."""
        normalisation, gradients = self.normalisation, rows.gradients
        targets = inputs = normalisation.apply(rows.activations[:, self.reads].to(device))
        if rows.targets is not None:
            targets = normalisation.of_targets.apply(rows.targets[:, self.writes].to(device))
        if gradients is not None:
            gradients = gradients[:, self.writes].to(device)
        return TrainingBatch(inputs, targets, gradients, step=step, normalisation=normalisation)


def normalisation_of(stream: ActivationStream, device: torch.device) -> Normalisation:
    """The normalisation of a stream of one part; see `parts_of`."""
    return parts_of(stream, (), device)[None].normalisation


def parts_of(
    stream: ActivationStream, layers: Sequence[int], device: torch.device
) -> dict[int | None, StreamPart]:
    """The parts of a stream by layer, with the normalisation that its own statistics call for.

    Args:
        layers: whose hook points the stream has side by side, each as many; empty: it has one part,
            of layer None.

    Raises:
        ActivationError: rows that do not vary.
    """
    names = layers or (None,)
    read = _split(stream.statistics, len(names), device)
    if stream.target_statistics is None:
        return {n: StreamPart(s, s, normal) for n, (s, normal) in zip(names, read, strict=True)}
    written = _split(stream.target_statistics, len(names), device)
    return {
        name: StreamPart(reads, writes, replace(normal, written=of_targets))
        for name, (reads, normal), (writes, of_targets) in zip(names, read, written, strict=True)
    }


def require_one_width(stream: ActivationStream) -> None:
    """Refuse a cross-layer transcoder of hook points of several widths.

    Raises:
        ConfigError: there are several.
    """
    of_sides = [stream.statistics, stream.target_statistics or stream.statistics]
    widths = {len(part.mean) for each in of_sides for part in each.by_hook_point or (each,)}
    if len(widths) > 1:
        raise ConfigError(
            f"cross_layer: the hook points have widths {sorted(widths)}: all that a cross-layer "
            "transcoder reads and writes must be of one width"
        )


def _split(
    statistics: RowStatistics, n_parts: int, device: torch.device
) -> list[tuple[slice, Normalisation]]:
    """The columns and the normalisation of each part of hook points that stand side by side."""
    each = statistics.by_hook_point or (statistics,)
    size, end, parts = len(each) // n_parts, 0, []
    for first in range(0, len(each), size):
        start, part = end, each[first : first + size]
        end += sum(len(of.mean) for of in part)
        parts.append((slice(start, end), _normalisation_of(part, device)))
    return parts


def _normalisation_of(hook_points: Sequence[RowStatistics], device: torch.device) -> Normalisation:
    parts = []
    for part in hook_points:
        if not part.centred_mean_squared_norm > 0:
            raise ActivationError(
                "the activations do not vary at all (their total variance is 0): "
                "check the hook point and the token filter"
            )
        parts.append(Normalisation.of(part.mean.to(device), part.centred_mean_squared_norm))
    return Normalisation.joined(parts)


def step_figures(batch: TrainingBatch, output: StepOutput) -> dict[str, float | None]:
    """Loss terms, FVU, L0 and densities of one batch.

    FVU is against the batch's own mean; a batch whose rows are all equal has none, which is no
    reason to end a run.
    """
    losses = {name: float(value.detach()) for name, value in output.losses.items()}
    return {
        "loss": sum(losses.values()),
        **{f"loss_{name}": value for name, value in losses.items()},
        "fvu": batch_fvu(batch.targets, output.reconstruction.detach()),
        "l0": mean_l0(output.codes),
        "l0_std": float(output.codes.l0().double().std()),
        **density_quantiles(output.codes),
    }


def density_quantiles(codes: SparseCodes) -> dict[str, float]:
    """Quantiles over latents of the share of rows on which each is active."""
    active = codes.latent[codes.value.detach() > 0]
    density = torch.bincount(active, minlength=codes.d_sae).double() / max(1, codes.n_rows)
    levels = density.new_tensor(list(DENSITY_QUANTILES.values()))
    return dict(zip(DENSITY_QUANTILES, density.quantile(levels).tolist(), strict=True))


class _Stopwatch:
    """Seconds per row since it was last asked; asking waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.rows, self._device, self._start = 0, device, time.monotonic()

    def seconds_per_row(self) -> float:
        synchronise(self._device)
        now = time.monotonic()
        seconds = (now - self._start) / max(1, self.rows)
        self.rows, self._start = 0, now
        return seconds
