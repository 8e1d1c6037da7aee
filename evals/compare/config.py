"""Settings of a comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saelab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is measured of every dictionary, what methods are held against, and where it goes.

    Numbers come from the suites core, consistency and steering. A result that a dictionary already
    has from the same settings is used as it is, so that a comparison that was stopped goes on where
    it stopped when the same command is given again.
    """

    out: Path = Path("runs/comparison")
    """Folder for compare.json, compare.parquet and compare.html."""
    n_tokens: int = 16_384
    """Tokens of held-out text per dictionary for reconstruction, densities, and which latents are
    alive (suites core, consistency and steering), rounded up to contexts."""
    n_loss_tokens: int = 4_096
    """Tokens, the first of those, on which losses and KL are measured."""
    batch_contexts: int = 4
    """Contexts in one forward pass; memory grows with it, the numbers do not depend on it."""
    consistency: bool = True
    """Compare the latents of the seeds of each method, width and k."""
    steering: bool = True
    """Steer with one dictionary per method and width (more with the two settings below)."""
    steering_k: tuple[int, ...] | None = None
    """Target L0 of the dictionaries that are steered with. None: the middle one of each width."""
    steering_seeds: int = 1
    """Seeds per method, width and k that are steered with: the lowest."""
    steering_latents: int = 128
    """Latents per dictionary that are steered with, drawn at random, and as many random directions
    that they are held against."""
    steering_strength: float = 1.0
    """Length of what is added, in multiples of the mean norm of the held-out rows."""
    reference: str = "topk"
    """Method that differences are taken to. Where no dictionary is of it: the first one's."""
    common_l0: tuple[float, ...] | None = None
    """L0 values at which methods are compared, by interpolation between their own points. None:
    all target L0 but the lowest and the highest, and the geometric mean of each two neighbours."""
    model: str | None = None
    """Where the language model lies, if not under its recorded name. None: there."""
    model_dtype: Literal["bfloat16", "float32", "float16"] | None = None
    """Dtype the model computes in. None: as in training."""
    device: str = "auto"
    """Device of model and dictionaries: `auto`, `cpu`, `cuda`."""
    overwrite: bool = False
    """Evaluate again where a result of other settings exists, and replace the comparison of other
    dictionaries in `out`. Results of the same settings are always used as they are."""

    def __post_init__(self) -> None:
        least = {
            "n_tokens": 1,
            "n_loss_tokens": 1,
            "batch_contexts": 1,
            "steering_seeds": 1,
            "steering_latents": 2,
        }
        problems = [
            f"{name}: {value} is below {bound}"
            for name, bound in least.items()
            if (value := getattr(self, name)) < bound
        ]
        if self.n_loss_tokens > self.n_tokens:
            problems.append(
                f"n_loss_tokens: {self.n_loss_tokens} exceeds n_tokens = {self.n_tokens}; losses "
                "are measured on the first of the same tokens"
            )
        positive = {
            "common_l0": self.common_l0,
            "steering_k": self.steering_k,
            "steering_strength": (self.steering_strength,),
        }
        for name, values in positive.items():
            if values is None:
                continue
            if not values or len(set(values)) < len(values):
                problems.append(f"{name}: {values} must be one or more different numbers")
            problems += [
                f"{name}: {value} is not a positive number"
                for value in values
                if not 0 < value < math.inf
            ]
        if problems:
            raise ConfigError(problems)
