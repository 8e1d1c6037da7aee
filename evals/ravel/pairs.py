"""Pairs of prompts: what is asked about one entity, with an attribute of another put into it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

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


def split_entities(
    prompts: Sequence[EntityPrompt], test_fraction: float, seed: int
) -> tuple[set[str], set[str]]:
    """Entities known by at least two attributes, divided into those learnt on and tested on."""
    attributes: dict[str, set[str]] = {}
    for prompt in prompts:
        attributes.setdefault(prompt.fact.entity, set()).add(prompt.fact.attribute)
    names = sorted(name for name, known in attributes.items() if len(known) > 1)
    random.Random(f"ravel split {seed}").shuffle(names)
    n_test = round(test_fraction * len(names))
    return {*names[n_test:]}, {*names[:n_test]}


def draw_pairs(
    prompts: Sequence[EntityPrompt], entities: set[str], attribute: str, count: int, seed: int
) -> list[ExchangePair]:
    """Cause and isolation pairs of one attribute, at most `count` of each, in random order.

    In both the source differs in the attribute that is exchanged and in what is asked for, so that
    an edit that exchanges everything fails at isolation and one that does nothing at cause.
    """
    within = [prompt for prompt in prompts if prompt.fact.entity in entities]
    value = {p.fact.entity: p.fact.value for p in within if p.fact.attribute == attribute}
    by_prompt: dict[str, list[EntityPrompt]] = {}
    for prompt in within:
        if prompt.fact.entity in value:
            by_prompt.setdefault(prompt.fact.prompt, []).append(prompt)
    kinds: dict[bool, list[ExchangePair]] = {True: [], False: []}
    for group in by_prompt.values():
        for base in group:
            for source in group:
                if value[base.fact.entity] == value[source.fact.entity]:
                    continue
                if base.answer == source.answer:
                    continue
                is_cause = base.fact.attribute == attribute
                answer = source.answer if is_cause else base.answer
                kinds[is_cause].append(ExchangePair(base, source, is_cause, answer))
    draw = random.Random(f"ravel pairs {attribute} {sorted(entities)} {seed}")
    size = min(count, *map(len, kinds.values()))
    pairs = [pair for every in kinds.values() for pair in draw.sample(every, size)]
    draw.shuffle(pairs)
    return pairs
