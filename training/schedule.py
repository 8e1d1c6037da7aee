"""How long a run is, and what its schedules count by once it has been made longer.

A run that is resumed with more tokens goes on from its newest checkpoint, with weights, Adam's
moments and counters as they are, in one of two ways:

* `redecay`: nothing that was reached is taken back. The rate is at its peak again (after a warm-up
  that was not over yet), and falls over `decay_fraction` of the added steps at the end. Whatever a
  method does by shares of the run keeps to the length from before.
* `extend`: everything goes by the new length from here on. A run that stopped before its rate began
  to fall then ends where one so long from the start does, if nothing else that was over by then
  goes by the length: a warm-up, a method's phases, a controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .config import OptimizerConfig

OnLonger = Literal["redecay", "extend"]


@dataclass(frozen=True)
class Schedule:
    """The length of a run in steps, and the lengths that its schedules are shares of."""

    n_steps: int
    """Steps of the run."""
    method_steps: int
    """Steps that the warm-up and the methods' own schedules are shares of."""
    decay_from: int = 0
    """Step from which on the steps are counted that the final decay is a share of."""

    @classmethod
    def of(cls, n_steps: int, extensions: Sequence[dict[str, Any]] = ()) -> Schedule:
        """The schedule of a run of this many steps, after the extensions its record names."""
        if not extensions:
            return cls(n_steps, n_steps)
        last = extensions[-1]
        before = cls.of(last["n_steps_before"], extensions[:-1])
        if last["on_longer"] == "extend":
            return cls(n_steps, n_steps)
        return cls(n_steps, before.method_steps, last["from_step"])

    def rate_factor(self, step: int, config: OptimizerConfig) -> float:
        """Share of the peak rate: linear warm-up, constant, linear decay to (nearly) zero."""
        warmup = max(1.0, config.warmup_fraction * self.method_steps)
        decay = max(1.0, config.decay_fraction * (self.n_steps - self.decay_from))
        return min(1.0, (step + 1) / warmup, (self.n_steps - step) / decay)
