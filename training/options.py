"""What the settings of every method have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from saelab.errors import ConfigError

from .parts.auxiliary_options import AuxiliaryOptions


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Settings that each method has."""

    learning_rate: float | None = None
    """Peak learning rate of this method. None: the run's."""
    auxiliary: AuxiliaryOptions = field(default_factory=AuxiliaryOptions)
    """The auxiliary loss that keeps latents in use."""

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """Everything wrong with the settings by themselves."""
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            return [f"learning_rate is {self.learning_rate}; it must be positive, finite, or None"]
        return []

    def problems_with(self, *, d_sae: int, k: int, batch_rows: int, n_steps: int) -> list[str]:
        """Everything wrong with the settings for a dictionary of this shape in a run this long."""
        del d_sae, k, batch_rows, n_steps
        return []


def outside(name: str, value: float | int, low: float | int, high: float | int) -> list[str]:
    """A problem where a number is not finite or not within its limits."""
    if low <= value <= high and math.isfinite(value):
        return []
    wanted = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
    return [f"{name} is {value}; it must be {wanted}, finite"]
