"""The sparsity weight λ: held, or controlled so that the measured L0 reaches its target.

The controller is proportional-integral in log λ on e = log(L0 / k), from the L0 of every batch:

    log λ ← log λ + P (ē − ē_before) + ē / I

with ē the running mean of e, each e limited to ±1, and I in steps. Logarithms make it indifferent
to the scale of the penalty. Where training starts away from k, the target goes from there to k over
the first part of the run, and so little is left for the integral to wind itself up on. P, I and the
running mean were chosen for runs from 150 steps on. All state is in buffers and none of it is read
back, so a step never waits for the device and a resumed run goes on exactly.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.sparse import SparseCodes

GAIN = 0.25
"""P: log λ rises by this much per unit of e."""
INTEGRAL_FRACTION = 0.07
"""I as a share of the run's steps, within `INTEGRAL_STEPS`."""
INTEGRAL_STEPS = (5.0, 400.0)
AVERAGED_FRACTION = 0.01
"""Steps over which e is averaged, as a share of the run's; one step at the least."""
MOST_AVERAGED_STEPS = 50.0
APPROACH_FRACTION = 0.1
"""Share of the run over which log target goes from where training starts to log k."""
LOG_RANGE = 16.0
"""λ stays within e^±16 of its start, so that a target out of reach cannot make it infinite."""


class SparsityController(nn.Module):
    """The weight of a sparsity penalty over a run.

    Args:
        target_l0: wanted mean number of active latents per token.
        n_steps: of the run.
        start_l0_factor: L0 of the first batch over the target.
        fixed: the weight of every step; None: controlled.
    """

    log_weight: Float[Tensor, ""]
    start_log_weight: Float[Tensor, ""]
    mean_error: Float[Tensor, ""]
    updates: Float[Tensor, ""]

    def __init__(
        self, target_l0: int, n_steps: int, fixed: float | None, *, start_l0_factor: float = 1.0
    ):
        super().__init__()
        self.target_l0, self.fixed = target_l0, fixed
        self.start_log_target = math.log(start_l0_factor)
        self.approach_steps = max(1.0, APPROACH_FRACTION * n_steps)
        low, high = INTEGRAL_STEPS
        self.integral_steps = min(max(low, INTEGRAL_FRACTION * n_steps), high)
        averaged = min(max(1.0, AVERAGED_FRACTION * n_steps), MOST_AVERAGED_STEPS)
        self.newest_share = 1 / averaged
        for name in ("log_weight", "start_log_weight", "mean_error", "updates"):
            self.register_buffer(name, torch.zeros(()))

    def start(self, weight: Float[Tensor, ""]) -> None:
        """Begin at this weight where it is controlled."""
        self.log_weight.copy_(weight.clamp_min(1e-6).log())
        self.start_log_weight.copy_(self.log_weight)

    def weight(self) -> Float[Tensor, ""]:
        """λ of the next step."""
        if self.fixed is not None:
            return torch.full_like(self.log_weight, self.fixed)
        return self.log_weight.exp()

    @torch.no_grad()
    def update(self, codes: SparseCodes) -> None:
        """Learn the L0 that the last weight has led to; the zeros among the codes do not count."""
        if self.fixed is not None:
            return
        l0 = (codes.value > 0).sum() / max(1, codes.n_rows)
        still_to_go = (1 - self.updates / self.approach_steps).clamp_min(0.0)
        log_target = math.log(self.target_l0) + self.start_log_target * still_to_go
        error = (l0.clamp_min(1e-6).log() - log_target).clamp(-1.0, 1.0)
        before = torch.where(self.updates > 0, self.mean_error, error)
        self.mean_error.copy_(before.lerp(error, self.newest_share))
        self.updates += 1
        change = GAIN * (self.mean_error - before) + self.mean_error / self.integral_steps
        low, high = self.start_log_weight - LOG_RANGE, self.start_log_weight + LOG_RANGE
        self.log_weight.copy_((self.log_weight + change).clamp(low, high))
