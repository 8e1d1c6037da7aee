"""Pairs of prompts: what is asked about one entity, with an attribute of another put into it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice

from .facts import EntityPrompt


@dataclass(frozen=True)
class ExchangePair:
    """A base prompt into which a source entity's activation goes, and the right answer then."""

    base: EntityPrompt
    source: EntityPrompt
    """The same prompt about another entity."""
    is_cause: bool
    """Whether the exchanged attribute is the one that is asked for."""
    answer: int
    """The source's answer of cause pairs, the base's of isolation pairs."""


def entities_with_two(prompts: Iterable[EntityPrompt]) -> set[str]:
    """Entities known by at least two attributes: one to exchange and one that should stay."""
    attributes: dict[str, set[str]] = {}
    for prompt in prompts:
        attributes.setdefault(prompt.fact.entity, set()).add(prompt.fact.attribute)
    return {name for name, known in attributes.items() if len(known) > 1}


def draw_pairs(
    prompts: Iterable[EntityPrompt], attribute: str, n_train: int, n_test: int, seed: int
) -> tuple[list[ExchangePair], list[ExchangePair]]:
    """Pairs of one attribute to learn on and other ones to test on, cause and isolation pairs.

    In both kinds the source differs in the attribute that is exchanged and in what is asked for, so
    that an edit that exchanges everything fails at isolation and one that does nothing at cause.
    Every base gets equally many sources, so that pairs can be run in batches of the same bases.

    Args:
        prompts: answered rightly by the model.
        attribute: exchanged.
        n_train: of each kind, at least; rounded up to a multiple of that kind's bases.
        n_test: of each kind, at most: each with another base.
        seed: of the draw.

    Returns:
        Both lists; empty where a kind has no base with two fitting sources.
    """
    prompts = sorted(prompts, key=lambda p: (p.fact.prompt, p.fact.entity))
    value = {p.fact.entity: p.fact.value for p in prompts if p.fact.attribute == attribute}
    able = [prompt for prompt in prompts if prompt.fact.entity in value]
    draw = random.Random(f"ravel pairs {attribute} {seed}")
    train: list[ExchangePair] = []
    test: list[ExchangePair] = []
    for is_cause in (True, False):
        candidates: list[list[ExchangePair]] = []
        for base in able:
            if (base.fact.attribute == attribute) is not is_cause:
                continue
            pairs = [
                ExchangePair(base, source, is_cause, (source if is_cause else base).answer)
                for source in able
                if source.fact.prompt == base.fact.prompt
                and source.answer != base.answer
                and value[source.fact.entity] != value[base.fact.entity]
            ]
            if len(pairs) > 1:
                candidates.append(draw.sample(pairs, len(pairs)))
        if not candidates:
            return [], []
        test += [pairs[0] for pairs in draw.sample(candidates, min(n_test, len(candidates)))]
        most = max(map(len, candidates)) - 1
        rounds = min(most, math.ceil(n_train / len(candidates)))
        # Where too few sources fit, the same ones again.
        train += [pair for pairs in candidates for pair in islice(cycle(pairs[1:]), rounds)]
    return train, test
