"""Settings of the auxiliary loss, which any method can use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from saelab.errors import ConfigError

AuxiliaryKind = Literal["auxk", "zipf", "none"]


@dataclass(frozen=True, kw_only=True)
class AuxiliaryOptions:
    """Which latents the auxiliary loss works on, and how strongly."""

    kind: AuxiliaryKind = "auxk"
    """`auxk`: latents silent for `dead_after_tokens`. `zipf`: latents that fire less often than
    `underused_below` times what Zipf's law gives their rank. `none`: no auxiliary loss."""
    weight: float = 1 / 32
    """Weight of the loss."""
    k_aux: int = 64
    """Latents of the set that each token may use."""
    every_rows: int = 1
    """The loss is taken on every so many-th row of a batch; rows come in random order, so it is
    an unbiased estimate of that of all, at a fraction of the cost."""
    dead_after_tokens: int = 100_000
    """A latent without a positive code for this many tokens counts as dead."""
    density_horizon_tokens: int = 100_000
    """Tokens over which a latent's density is averaged, for `zipf`."""
    underused_below: float = 0.5
    """Share of its Zipf target below which a latent counts as underused, for `zipf`."""
    zipf_exponent: float | None = None
    """Exponent of the law that targets follow, for `zipf`. None: exponent and offset are fitted to
    the densities of the head of ranks, again and again, starting from 1 and `zipf_offset`."""
    zipf_offset: float = 10.0
    """Offset added to the rank in that law, for `zipf`."""
    largest_density: float = 0.5
    """Largest target density of a latent, for `zipf`."""

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in get_args(AuxiliaryKind):
            kinds = ", ".join(get_args(AuxiliaryKind))
            problems.append(f"auxiliary.kind is {self.kind!r}; it must be one of {kinds}")
        if not 0 <= self.weight < math.inf:
            problems.append(f"auxiliary.weight is {self.weight}; it must be 0 or more, finite")
        problems += [
            f"auxiliary.{name} is {getattr(self, name)}; it must be at least 1"
            for name in ("k_aux", "every_rows", "dead_after_tokens", "density_horizon_tokens")
            if getattr(self, name) < 1
        ]
        problems += [
            f"auxiliary.{name} is {getattr(self, name)}; it must be 0 or more, finite"
            for name in ("zipf_exponent", "zipf_offset")
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf
        ]
        problems += [
            f"auxiliary.{name} is {getattr(self, name)}; it must be above 0 and at most 1"
            for name in ("underused_below", "largest_density")
            if not 0 < getattr(self, name) <= 1
        ]
        if problems:
            raise ConfigError(problems)
