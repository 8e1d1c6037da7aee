"""The suite "steering": what adding a latent's direction does to the logits in any context.

After "Features that Make a Difference" (arXiv 2411.10397): are a dictionary's latents good for
steering wherever they are added, and not only where they are active by themselves?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saelab.config import Within

from ..suite import HeldOutConfig, Suite, deferred, not_positive


@dataclass(frozen=True, kw_only=True)
class SteeringConfig(HeldOutConfig):
    """How many latents are added in how many contexts, how strongly, and where results go.

    All dictionaries of a call that were trained on the same rows share contexts, strengths and
    random directions.
    """

    n_latents: Annotated[int, Within(2)] = 128
    """Live latents per dictionary, drawn at random; all of them where there are fewer."""
    n_contexts: Annotated[int, Within(2)] = 16
    """Contexts of held-out text, drawn at random; promoted tokens are chosen on the first half of
    them and tested on the others."""
    prompt_tokens: Annotated[int, Within(2)] = 32
    """Tokens in each of those contexts; the last one is where directions are added."""
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Length of what is added, in multiples of the mean norm of the held-out rows."""
    n_random: Annotated[int, Within(2)] = 128
    """Random unit directions that latents are compared with."""
    n_top_tokens: Annotated[int, Within(1)] = 10
    """Promoted tokens by which consistency is measured."""
    n_bootstrap: Annotated[int, Within(1)] = 1000
    """Resamples for the 95 % intervals of differences."""
    seed: int = 0
    """Decides latents, contexts, random directions and resamples."""
    n_tokens: Annotated[int, Within(1)] = 16_384
    """Tokens of held-out text on which live latents and the mean norm are found, rounded up to
    contexts as long as in training."""
    batch_variants: Annotated[int, Within(1)] = 128
    """Steered copies of a context in one forward pass; memory grows with it."""

    def problems(self) -> list[str]:
        """Strengths that are none."""
        return not_positive("strengths", self.strengths)


SUITE = Suite(
    name="steering",
    summary="Add latents in arbitrary contexts: size and consistency of their effect on the "
    "logits.",
    Config=SteeringConfig,
    measure=deferred(".steering.measure", "measure_steering"),
    definitions=deferred(".steering.numbers", "steering_definitions"),
    charts=deferred(".steering.charts", "steering_charts"),
    tables=deferred(".steering.charts", "steering_tables"),
    serves={"strengths": lambda measured, asked: set(measured) >= set(asked)},
)
run_steering = SUITE.run
"""Steer with dictionaries: (folders, config) -> results in the order of the folders."""
