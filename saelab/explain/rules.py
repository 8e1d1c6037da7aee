"""Rules over tokens: which tokens a feature fires on, said so that a program can check it.

A rule says what a token is ("of", a number, a word ending in "ing"), what is around it, or both.
Every pair of the two is tried at once, as products of matrices over the tokens shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from saelab.features.records import Example

from .words import NOTHING, TOKEN, WORD, Attribute, Lexicon, quoted

RELATIONS = ("after", "after both", "before", "soon after")
"""What is around a token: the one before it, the two before it, the next, a word up to `REACH`
tokens earlier."""
REACH = 8
PAIR = 1 << 32
"""A pair of tokens is one number: that of the first and one, times this, and that of the second."""
LINE_BREAKS = {"\n": "a line break", "\n\n": "an empty line"}
LISTED = ("is", "after")
"""Where a rule may list several words."""
MOST_MEMBERS = 5
"""Tokens or words that one rule lists."""
MOST_CANDIDATES = 48
"""Attributes tried of the token itself, and of each relation."""
COST_OF_MEMBER, COST_OF_CONTEXT, COST_OF_KIND = 0.02, 0.03, 0.005
"""What F1 has to gain for one more listed word, for saying what is around, for a kind of word
rather than a token."""


class Condition(NamedTuple):
    """One half of a rule."""

    relation: str
    """What the attributes are of: the token itself ("is"), or one of `RELATIONS`."""
    values: tuple[int, ...]
    """Attributes of the token it is about, one of which has to be there."""


@dataclass(frozen=True)
class Rule:
    """Says of every token whether the feature fires on it."""

    conditions: tuple[Condition, ...]
    """All have to hold; without any, the rule says every token."""


class TokenTable:
    """The tokens of some examples under one another, with their attributes.

    Args:
        lexicon: where attributes are numbered; the same for rules that are applied.
        examples: any windows.
    """

    def __init__(self, lexicon: Lexicon, examples: Sequence[Example]):
        self.lexicon, self.examples = lexicon, examples
        lengths = [len(example.texts) for example in examples]
        self.ends: Integer[np.ndarray, " examples"] = np.cumsum(lengths, dtype=np.int64)
        """Where each example's tokens end."""
        self._index = np.concatenate([np.arange(0), *map(np.arange, lengths)])
        self._texts = [text for example in examples for text in example.texts]
        of_tokens = lexicon.table(self._texts)
        self._attributes: dict[str, Integer[np.ndarray, "tokens attributes"]] = {"is": of_tokens}

    def attributes(self, relation: str) -> Integer[np.ndarray, "tokens attributes"]:
        """The attributes of each token ("is"), or of what is around it (one of `RELATIONS`)."""
        if relation not in self._attributes:
            self._attributes[relation] = self._around(relation)
        return self._attributes[relation]

    def _around(self, relation: str) -> Integer[np.ndarray, "tokens attributes"]:
        itself = self._attributes["is"]
        if relation == "after":
            return self._earlier(itself, 1)
        if relation == "soon after":
            words = itself[:, WORD]
            return np.stack([self._earlier(words, by) for by in range(2, REACH + 1)], axis=1)
        if relation == "after both":
            first, second = (self._earlier(itself[:, TOKEN], by).astype(np.int64) for by in (2, 1))
            return np.where(first == NOTHING, NOTHING, (first + 1) * PAIR + second)[:, None]
        after = np.full_like(itself, NOTHING)
        after[:-1] = np.where(self._index[1:, None] == 0, NOTHING, itself[1:])
        return after

    def _earlier(
        self, attributes: Integer[np.ndarray, " ..."], by: int
    ) -> Integer[np.ndarray, " ..."]:
        """What stands `by` tokens earlier in the same example; `NOTHING` before it."""
        moved = np.full_like(attributes, NOTHING)
        moved[by:] = attributes[:-by]
        moved[self._index < by] = NOTHING
        return moved

    def spelling(self, word: int, small: str) -> str:
        """A word in small letters as it is written here: in capitals if it always is."""
        at = np.flatnonzero(self._attributes["is"][:, WORD] == word).tolist()
        written = [self._texts[index].strip() for index in at]
        return next((spelling for spelling in written if spelling.islower()), [*written, small][0])

    def activations(self) -> Float[np.ndarray, " tokens"]:
        """The feature's activation at each token."""
        return np.concatenate([np.zeros(0), *(example.activations for example in self.examples)])

    def counted(self) -> Bool[np.ndarray, " tokens"]:
        """Which tokens are rows."""
        return np.concatenate([np.zeros(0, bool), *(example.counted for example in self.examples)])

    def matches(self, rule: Rule) -> Bool[np.ndarray, " tokens"]:
        """Where a rule says that the feature fires."""
        matches = np.ones(len(self._index), bool)
        for relation, values in rule.conditions:
            present = self.attributes(relation)
            matches &= np.logical_or.reduce([(present == value).any(1) for value in values])
        return matches


def best_rule(table: TokenTable) -> Rule:
    """The rule with the highest F1 over the counted tokens, less what its length costs.

    Firing tokens weigh as much as their activation is of the mean. Of rules that are equally good
    the more specific is taken: tokens before kinds of words.
    """
    weight = table.activations() * table.counted()
    silent = (table.counted() & (weight == 0)).astype(np.float32)
    weight = (weight / weight[weight > 0].mean()).astype(np.float32)
    of_token = _candidates(table, "is", weight, silent)
    around = [_candidates(table, relation, weight, silent) for relation in RELATIONS]
    # The last of each says nothing of the token, or of what is around it.
    anything = np.ones((1, len(weight)), np.float32)
    token_present = np.concatenate([of_token.present, anything])
    context_present = np.concatenate([*(candidates.present for candidates in around), anything])
    cost = np.concatenate([*(candidates.cost + COST_OF_CONTEXT for candidates in around), [0.0]])
    firing = weight > 0
    right = (token_present * weight)[:, firing] @ context_present[:, firing].T
    wrong = (token_present * silent) @ context_present.T
    gain = 2 * right / (right + wrong + weight.sum())
    gain -= np.append(of_token.cost, 0.0)[:, None] + cost
    best, beside = divmod(int(gain.argmax()), len(cost))
    said = [(candidates.relation, values) for candidates in around for values in candidates.values]
    conditions = [("is", values) for values in of_token.values[best : best + 1]]
    conditions += said[beside : beside + 1]
    return Rule(tuple(Condition(*condition) for condition in conditions))


class _Candidates(NamedTuple):
    """What may be said of a token, or of what is around it."""

    relation: str
    values: list[tuple[int, ...]]
    """Attributes, alone and listed."""
    present: Float[np.ndarray, "candidates tokens"]
    """1 where one of them is there."""
    cost: Float[np.ndarray, " candidates"]


def _candidates(
    table: TokenTable,
    relation: str,
    weight: Float[np.ndarray, " tokens"],
    silent: Float[np.ndarray, " tokens"],
) -> _Candidates:
    """The attributes that most of the firing mass shares, and lists of words that do together."""
    attributes, there = table.lexicon.attributes, table.attributes(relation)
    firing = np.flatnonzero(weight)
    values, first, at = np.unique(there[firing], return_index=True, return_inverse=True)
    at = at.ravel()
    mass = np.bincount(at, np.repeat(weight[firing], there.shape[1]), len(values))
    # What stands in one example alone would be learnt by heart.
    example = np.searchsorted(table.ends, firing, side="right")
    seen = np.zeros((len(values), len(table.ends)), bool)
    seen[at, np.repeat(example, there.shape[1])] = True
    shared = (values != NOTHING) & (seen.sum(1) >= min(2, seen.any(0).sum()))
    # Ties go by what comes first, not by numbers, which other features' texts decide.
    kept = np.flatnonzero(shared)[np.lexsort((first[shared], -mass[shared]))][:MOST_CANDIDATES]
    values = values[kept]
    present = _where(there, values)
    sorts = ["pair" if value >= PAIR else attributes[value].sort for value in values]
    cost = np.array([0.0 if sort in ("token", "word", "pair") else COST_OF_KIND for sort in sorts])
    alone = [(int(value),) for value in values]
    # Of all sets of words, one that begins their list by falling precision has the best F1.
    words = np.flatnonzero(np.array(sorts) == "word")
    right, wrong = present[words] @ weight, present[words] @ silent
    order = words[np.argsort(-right / (right + wrong), kind="stable")][:MOST_MEMBERS]
    sizes = range(2, len(order) + 1) if relation in LISTED else ()
    return _Candidates(
        relation,
        alone + [tuple(values[order[:size]].tolist()) for size in sizes],
        np.concatenate([present, *(present[order[:size]].max(0, keepdims=True) for size in sizes)]),
        np.concatenate([cost, [COST_OF_MEMBER * (size - 1) for size in sizes]]),
    )


def _where(
    table: Integer[np.ndarray, "tokens attributes"], values: Integer[np.ndarray, " values"]
) -> Float[np.ndarray, "values tokens"]:
    """1 where a token has an attribute."""
    present = np.zeros((len(values), len(table)), np.float32)
    if len(values):
        order = np.argsort(values)
        near = np.searchsorted(values[order], table).clip(max=len(values) - 1)
        token, column = np.nonzero(values[order][near] == table)
        present[order[near[token, column]], token] = 1
    return present


def text_of(rule: Rule, table: TokenTable) -> str:
    """A rule in words, which are written as in the examples of a table."""
    if not rule.conditions:
        return "every token"
    said = {
        relation: [_attribute(value, table) for value in values]
        for relation, values in rule.conditions
    }
    of_token = said.pop("is", [])
    text = _either(of_token) if of_token else "the token"
    for relation, others in said.items():
        word = _one_word(of_token, others, relation)
        if word is not None:
            return f"{text} in {quoted(word)}"
        text += f" {relation.removesuffix(' both')} {_either(others)}"
    return text


def _attribute(value: int, table: TokenTable) -> Attribute:
    attributes = table.lexicon.attributes
    if value >= PAIR:
        first, second = divmod(value, PAIR)
        return Attribute("token", attributes[first - 1].value + attributes[second].value)
    sort, text = attributes[value]
    return Attribute(sort, table.spelling(value, text) if sort == "word" else text)


def _one_word(of_token: list[Attribute], others: list[Attribute], relation: str) -> str | None:
    """The word that a token and what is beside it make up; None where they do not."""
    if len(of_token) != 1 or len(others) != 1 or relation == "soon after":
        return None
    if {of_token[0].sort, others[0].sort} != {"token"}:
        return None
    first, second = of_token[0].value, others[0].value
    if relation != "before":
        first, second = second, first
    return first + second if first[-1:].isalnum() and second[:1].isalnum() else None


def _either(attributes: list[Attribute]) -> str:
    """One of some attributes, in words."""
    *rest, last = [_named(attribute) for attribute in attributes]
    return f"{', '.join(rest)} or {last}" if rest else last


def _named(attribute: Attribute) -> str:
    sort, value = attribute
    if sort == "kind":
        return value
    if sort in ("ending", "beginning"):
        return f'a word {sort} {"in" if sort == "ending" else "with"} "{value}"'
    if not value.strip():
        return "a space" if "\n" not in value else LINE_BREAKS.get(value, "line breaks")
    return quoted(value)
