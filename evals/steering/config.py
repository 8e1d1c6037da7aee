"""Settings of the suite "steering"."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.errors import ConfigError

from ..suite import HeldOutConfig


@dataclass(frozen=True, kw_only=True)
class SteeringConfig(HeldOutConfig):
    """How many latents are added in how many contexts, how strongly, and where results go.

    All dictionaries of a call that were trained on the same rows share contexts, strengths and
    random directions.
    """

    n_latents: int = 128
    """Live latents per dictionary, drawn at random; all of them where there are fewer."""
    n_contexts: int = 16
    """Contexts of held-out text, drawn at random; promoted tokens are chosen on the first half of
    them and tested on the others."""
    prompt_tokens: int = 32
    """Tokens in each of those contexts; the last one is where directions are added."""
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Length of what is added, in multiples of the mean norm of the held-out rows."""
    n_random: int = 128
    """Random unit directions that latents are held against."""
    n_top_tokens: int = 10
    """Promoted tokens by which consistency is measured."""
    n_bootstrap: int = 1000
    """Resamples for the 95 % intervals of differences."""
    seed: int = 0
    """Decides latents, contexts, random directions and resamples."""
    n_tokens: int = 16_384
    """Tokens of held-out text on which live latents and the mean norm are found, rounded up to
    contexts as long as in training."""
    batch_variants: int = 128
    """Steered copies of a context in one forward pass; memory grows with it."""

    def __post_init__(self) -> None:
        least = {"n_contexts": 2, "prompt_tokens": 2, "n_latents": 2, "n_random": 2}
        counts = ("n_top_tokens", "n_bootstrap", "n_tokens", "batch_variants")
        problems = [
            f"{name}: {value} is below {bound}"
            for name, bound in {**least, **dict.fromkeys(counts, 1)}.items()
            if (value := getattr(self, name)) < bound
        ]
        if not self.strengths or len(set(self.strengths)) < len(self.strengths):
            problems.append(f"strengths: {self.strengths} must be one or more different numbers")
        problems += [
            f"strengths: {strength} is not a positive number"
            for strength in self.strengths
            if not 0 < strength < float("inf")
        ]
        problems += self.problems()
        if problems:
            raise ConfigError(problems)
