"""The suite "unlearning": do latents of a topic, clamped, take that topic away and nothing else?

Protocol of SAEBench (arXiv 2503.09532), after Farrell et al., 2024 (arXiv 2410.19278): latents that
fire on the text to be forgotten and hardly on the text to be retained are held below zero wherever
they fire. Judged by the loss on both texts; by multiple-choice questions where some are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from saelab.config import Within
from saelab.errors import ConfigError

from ..core.config import WINDOW
from ..suite import ControlledConfig, Suite, deferred, not_positive


@dataclass(frozen=True, kw_only=True)
class UnlearningConfig(ControlledConfig):
    """Which text is to be forgotten and which retained, which latents are clamped, and how far."""

    PROTOCOL = f"losses in float32, on windows of {WINDOW} tokens by document"
    """What settings do not say, and what tells results apart that were measured otherwise."""

    forget: str = ""
    """Text to be forgotten: a file, a folder, or whatever else is read as text. Needed."""
    retain: str | None = None
    """Text to be retained. None: the dictionary's own."""
    questions: Path | None = None
    """Multiple-choice questions about what is to be forgotten, a CSV or JSONL file of `question`,
    `choices` and `answer`. None: no accuracy is measured."""
    span_characters: Annotated[int, Within(1)] = 2000
    """`forget` and `retain` are cut into documents of at most this many characters, half of which
    choose latents and half of which judge."""
    n_tokens: Annotated[int, Within(1)] = 16_384
    """Tokens of each text that densities are counted on. SAEBench: 1,048,576."""
    n_loss_tokens: Annotated[int, Within(1)] = 2048
    """Tokens of each text that losses are measured on, in windows that documents give in turn."""
    retain_densities: tuple[float, ...] = (0.001, 0.01)
    """Latents that fire on at least this share of the retain text are left alone; each is tried."""
    n_latents: Annotated[tuple[int, ...], Within(1)] = (10, 20)
    """How many of the others are clamped, those with the largest forget density; each is tried."""
    clamps: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """How far below zero a latent that fires is held, in multiples of its mean code where it fires
    on the forget text; each is tried. SAEBench: codes of -25, -50, -100 and -200."""
    most_retain_rise: Annotated[float, Within(0)] = 0.01
    """Share by which the perplexity of the retain text may rise in the settings that count."""
    seed: int = 0
    """Decides how `forget` and `retain` are divided, and the random latents."""

    def problems(self) -> list[str]:
        """Settings to be tried that are none, or that are given twice."""
        problems = [
            *not_positive("retain_densities", self.retain_densities),
            *not_positive("clamps", self.clamps),
        ]
        if not self.n_latents or len({*self.n_latents}) < len(self.n_latents):
            problems.append(f"n_latents: {self.n_latents} must be one or more different numbers")
        return problems


def require_forget(forget: str) -> None:
    """Refuse to start without a text to be forgotten.

    Raises:
        ConfigError: it was not given.
    """
    if not forget:
        raise ConfigError("no text to be forgotten was given: give --forget FILE")


SUITE = Suite(
    name="unlearning",
    summary="Whether clamping a topic's latents raises the loss on that topic and on nothing else.",
    Config=UnlearningConfig,
    measure=deferred(".unlearning.measure", "measure_unlearning"),
    definitions=deferred(".unlearning.numbers", "unlearning_definitions"),
    charts=deferred(".unlearning.numbers", "unlearning_charts"),
    tables=deferred(".unlearning.numbers", "unlearning_tables"),
    # Before control dictionaries are made.
    action=lambda command: require_forget(command.config.forget),
    headline=("rise_forget",),
    skyline={"rise_forget": "rise_switch"},
    shown={
        "rise_forget": "forget rise (nats)",
        "rise_retain": "retain rise (nats)",
        "random_rise_forget": "forget, random",
        "random_rise_retain": "retain, random",
        "rise_switch": "switch",
        "n_clamped": "latents",
        "clamp": "clamp",
    },
)
run_unlearning = SUITE.run
"""Judge dictionaries: (folders, config) -> results in the order of the folders."""
