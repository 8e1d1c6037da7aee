"""What explaining would cost, counted before anything is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .answers import ANSWER_FILE, AnswerBook, CountingAsker
from .config import ExplainConfig
from .endpoint import Answerer
from .evidence import gather, in_fixed_order
from .run import (
    BEGINNINGS,
    EXPLAINS_NOTHING,
    chosen_features,
    judge_of,
    opened,
)
from .scores import judged

N_ESTIMATED = 12
"""Features whose questions are counted for an estimate."""


@dataclass(frozen=True)
class Cost:
    """What a run would ask that was not asked before."""

    questions: int
    prompt_tokens: int
    completion_tokens: int
    money: float | None
    """At the prices given; None where none was."""

    def __str__(self) -> str:
        money = "" if self.money is None else f", {self.money:,.2f} at the prices given"
        return (
            f"about {self.questions:,} questions, {self.prompt_tokens:,} tokens to read and "
            f"{self.completion_tokens:,} to write{money}"
        )


def estimated_cost(folder: Path, config: ExplainConfig, model: Answerer) -> Cost:
    """What explaining would cost, from the questions about a few features.

    Raises:
        ArtifactError, ConfigError: as for `explain_dictionary`.
    """
    with opened(folder) as store, AnswerBook(folder / ANSWER_FILE) as answers:
        features = chosen_features(store, config)
        sample = in_fixed_order(features, config.seed)[:N_ESTIMATED]
        tallies = []
        for names in ((), config.scores):
            ask = CountingAsker(model, answers)
            judge = judge_of(config, ask)
            for feature in sample:
                evidence = gather(store, feature, config.evidence, config.seed)
                text = judge.explain(evidence.shown, evidence.contrast) or EXPLAINS_NOTHING
                judged(judge, evidence, text, shuffled=None, random=None, names=names)
                if "intervention" in names:
                    pair = (evidence.shown[0], evidence.shown[0])
                    judge.which_was_steered(text, [pair] * 2 * len(BEGINNINGS))
            tallies.append(ask.tally)
    explaining, everything = tallies
    scale = len(features) / len(sample)
    controlled = len(features) if config.controls is None else config.controls
    judging = 1 + 2 * min(1, controlled / len(features))

    def total(name: str) -> int:
        first, both = getattr(explaining, name), getattr(everything, name)
        return round(scale * (first + judging * (both - first)))

    tokens = total("prompt_tokens"), total("completion_tokens")
    prices = config.price_in, config.price_out
    money = sum(n * (price or 0) / 1e6 for n, price in zip(tokens, prices, strict=True))
    return Cost(total("asked"), *tokens, None if prices == (None, None) else money)
