"""A learner: one method with its optimizer, stepping on whatever batch it is given."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saelab.errors import ResourceError
from saelab.memory import memory_of
from saelab.sparse.world import current_world

from .config import DictionarySpec, OptimizerConfig
from .interface import DictionarySettings, Method, StepOutput, TrainingBatch
from .methods import METHODS, MethodOptions
from .options import CommonOptions
from .schedule import Schedule


class Learner:
    """One dictionary in training.

    Its state is that of the method (parameters and buffers) and the optimizer's; nothing else
    carries over from step to step.
    """

    def __init__(
        self, spec: DictionarySpec, method: Method, config: OptimizerConfig, schedule: Schedule
    ):
        self.spec, self.method, self.schedule = spec, method, schedule
        self.config = config
        self.clock = StepClock(next(method.parameters()).device)
        self.optimizer = torch.optim.Adam(
            method.parameters(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=True,
        )

    @staticmethod
    def build(
        spec: DictionarySpec,
        *,
        d_in: int,
        d_out: int | None = None,
        n_layers: int | None = None,
        written_widths: tuple[int, ...] = (),
        skip: bool = False,
        schedule: Schedule,
        batch_rows: int,
        options: MethodOptions,
        optimizer: OptimizerConfig,
        product_dtype: torch.dtype | None,
        device: torch.device,
    ) -> Learner:
        """A learner at its start, its weights drawn from the dictionary's seed.

        `d_out` is the width of what is written, `written_widths` those of its hook points; None:
        what is read is written. `n_layers` is given for a cross-layer transcoder. `skip`: learn an
        affine skip too.

        Raises:
            ResourceError: the device has too little memory for it.
        """
        _require_memory(spec, (d_in, d_in if d_out is None else d_out), n_layers, device)
        settings = DictionarySettings(
            d_in=d_in,
            d_out=d_out,
            n_layers=n_layers,
            written_widths=written_widths,
            skip=skip,
            d_sae=spec.d_sae,
            k=spec.k,
            seed=spec.seed,
            batch_rows=batch_rows,
            n_steps=schedule.method_steps,
            product_dtype=product_dtype,
        )
        method_options: CommonOptions = getattr(options, spec.method)
        method = METHODS[spec.method](settings, method_options)
        if method_options.learning_rate is not None:
            optimizer = replace(optimizer, learning_rate=method_options.learning_rate)
        return Learner(spec, method.to(device), optimizer, schedule)

    def step(self, batch: TrainingBatch) -> StepOutput:
        """Take one step on a batch of normalised activations."""
        self.clock.start()
        factor = self.schedule.rate_factor(batch.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        self.optimizer.zero_grad()
        output = self.method.losses(batch)
        torch.stack(list(output.losses.values())).sum().backward()
        current_world().average_gradients(self.method.parameters())
        self.method.adjust_gradients()
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.method.after_update(batch, output)
        self.clock.stop()
        return output

    def first_not_finite(self) -> str | None:
        """The name of a parameter that holds NaN or infinities, or None."""
        parameters = self.method.named_parameters()
        return next((name for name, p in parameters if not bool(p.isfinite().all())), None)

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, as named tensors."""
        state = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        return state | moments_of(dict(self.method.named_parameters()), self.optimizer)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on exactly where `state` was taken."""
        prefix = "method."
        of_method = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        self.method.load_state_dict({n.removeprefix(prefix): t for n, t in of_method.items()})
        restore_moments(dict(self.method.named_parameters()), self.optimizer, state)


def moments_of(named: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state of each named tensor, as named tensors."""
    return {
        f"optimizer.{name}.{key}": tensor
        for name, parameter in named.items()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(
    named: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]
) -> None:
    """Give an optimizer the state that `moments_of` took."""
    for name, parameter in named.items():
        prefix = f"optimizer.{name}."
        optimizer.state[parameter] = {
            key.removeprefix(prefix): _laid_out_like(parameter, tensor)
            for key, tensor in state.items()
            if key.startswith(prefix)
        }


def _require_memory(
    spec: DictionarySpec, widths: tuple[int, int], n_layers: int | None, device: torch.device
) -> None:
    """Refuse a dictionary that the device cannot hold, before anything is allocated."""
    weights = sum(widths) * spec.d_sae
    if n_layers is not None:
        # An encoder for one layer, and decoders for half of them and half a layer.
        weights = widths[0] // n_layers * spec.d_sae * (n_layers + 3) // 2
    # Weights, their gradients, and Adam's two moments, in float32.
    needed, there = 4 * 4 * weights, memory_of(device)
    if there is not None and needed > there:
        raise ResourceError(
            f"{spec.name}: training {spec.d_sae:,} latents of width {widths[0]:,}"
            f"{'' if n_layers is None else f' across {n_layers} layers'} takes "
            f"{needed / 1e9:,.0f} GB (weights, gradients and Adam's moments), and {device} has "
            f"{there / 1e9:,.0f} GB: lower --d-sae"
        )


def require_memory_to_calibrate(n_rows: int, d_in: int) -> None:
    """Refuse rows for thresholds that memory cannot hold, before a run that would end with them.

    Raises:
        ResourceError: they are too many.
    """
    # As they are read, normalised, and once between.
    needed, there = 3 * 4 * n_rows * d_in, memory_of(torch.device("cpu"))
    if there is not None and needed > there:
        raise ResourceError(
            f"{n_rows:,} rows of width {d_in:,}, which thresholds are fitted to, take "
            f"{needed / 1e9:,.0f} GB, and there are {there / 1e9:,.0f} GB: lower --calibration-rows"
        )


class StepClock:
    """How long steps take: on a GPU by events in its queue, since launching is not computing."""

    PENDING = 256
    """Steps whose events are kept at most before they are read."""

    def __init__(self, device: torch.device):
        has_queue = device != torch.device("cpu")
        self._event = torch.get_device_module(device).Event if has_queue else None
        self._seconds, self._steps, self._started = 0.0, 0, 0.0
        self._events: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Begin a step."""
        if self._event is None:
            self._started = time.monotonic()
            return
        if len(self._events) >= self.PENDING:
            self._read(self.PENDING // 2)
        pair = self._event(enable_timing=True), self._event(enable_timing=True)
        pair[0].record()
        self._events.append(pair)

    def stop(self) -> None:
        """End it."""
        self._steps += 1
        if self._event is None:
            self._seconds += time.monotonic() - self._started
        else:
            self._events[-1][1].record()

    def seconds_per_step(self) -> float | None:
        """Mean time of the steps; None where there were none. Waits for the device."""
        self._read(len(self._events))
        return self._seconds / self._steps if self._steps else None

    def _read(self, count: int) -> None:
        """Add up the oldest steps, which are done long since where there are many pending."""
        for begin, end in self._events[:count]:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        del self._events[:count]


def synchronise(device: torch.device) -> None:
    """Wait until all that was launched on a device is done; on the CPU there is nothing to."""
    torch.get_device_module(device).synchronize(device)


def _laid_out_like(parameter: Tensor, loaded: Tensor) -> Tensor:
    """A copy where the parameter is, in its memory layout, as the fused optimizer expects it."""
    if loaded.shape != parameter.shape:
        return loaded.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=loaded.dtype).copy_(loaded)
