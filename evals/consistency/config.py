"""Settings of the suite "consistency"."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.errors import ConfigError

from ..suite import HeldOutConfig


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(HeldOutConfig):
    """What counts as the same latent, on which rows latents are ranked, and where results go.

    Dictionaries are grouped by method and its options, architecture, d_sae, target L0, hook point
    and model; those of a group should differ in their seed alone and are compared with one another.
    """

    across: bool = False
    """Also compare each group with the others: methods, widths or sparsities with one another.
    Groups of one dictionary are then allowed."""
    threshold: float = 0.9
    """Cosine of two decoder rows above which they count as the same latent."""
    top_fraction: float = 0.01
    """Fraction of the alive latents, the highest of a ranking, that the numbers of the "most
    active" latents are about; the curves show every fraction."""
    activity: bool = True
    """Measure on held-out rows which latents are alive and how they rank (max activation,
    Z-score, density). Without it all latents count, nothing is ranked and no model is run."""
    n_tokens: int = 65_536
    """Tokens of held-out text for that, rounded up to contexts (rows, for planted features)."""
    seed: int = 0
    """Decides the random directions that the floor is measured with."""

    def __post_init__(self) -> None:
        problems = [f"n_tokens: {self.n_tokens} is below 1"] if self.n_tokens < 1 else []
        if not 0 < self.threshold < 1:
            problems.append(f"threshold: {self.threshold} is not between 0 and 1")
        if not 0 < self.top_fraction <= 1:
            problems.append(
                f"top_fraction: {self.top_fraction} is not above 0 and at most 1 (all latents)"
            )
        problems += self.problems()
        if problems:
            raise ConfigError(problems)
