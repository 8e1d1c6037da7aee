"""What the settings of every method have in common, and those that several share; free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class SparsityOptions(CommonOptions):
    """Settings that methods with a sparsity penalty share."""

    sparsity_weight: float | None = None
    """Weight λ of the sparsity penalty, held for the whole run: what one unit of the penalty costs
    in squared error of normalised activations. None: controlled so that L0 reaches k."""
    start_l0_factor: float = 1.0
    """L0 of the first batch as a multiple of k: thresholds or biases are set to it once."""
    encoder_scale: float = 0.5
    """Norm of each latent's encoder weights at the start; 1 would tie them to the decoder's."""

    def problems(self) -> list[str]:
        """Everything wrong with the settings by themselves."""
        weight = [] if self.sparsity_weight is None else [self.sparsity_weight]
        return [
            *super().problems(),
            *(p for w in weight for p in outside("sparsity_weight", w, 0, math.inf)),
            *outside("start_l0_factor", self.start_l0_factor, 0.1, math.inf),
            *outside("encoder_scale", self.encoder_scale, 1e-6, math.inf),
        ]

    def problems_with(self, *, d_sae: int, k: int, batch_rows: int, n_steps: int) -> list[str]:
        """Everything wrong with the settings for a dictionary of this shape in a run this long."""
        found = super().problems_with(d_sae=d_sae, k=k, batch_rows=batch_rows, n_steps=n_steps)
        if self.sparsity_weight is None and k > d_sae // 2:
            found.append(
                f"target L0 not reachable: a penalty can only lower L0, and without one about half "
                f"of the d_sae = {d_sae} pre-activations of a token are positive; take k = "
                f"{d_sae // 2} or less, or d_sae = {2 * k} or more"
            )
        return found


def outside(name: str, value: float | int, low: float | int, high: float | int) -> list[str]:
    """A problem where a number is not finite or not within its limits."""
    if low <= value <= high and math.isfinite(value):
        return []
    wanted = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
    return [f"{name} is {value}; it must be {wanted}, finite"]
