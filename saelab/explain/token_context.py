"""Explanations without a language model: the rule over tokens and context that fits best.

A rule is found on the examples shown and judged on the held-out ones by applying it, so its scores
are those that a reader who takes its text at its word would get.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from saelab.features.label_content import LabelContent, Score
from saelab.features.reader import FeatureStore
from saelab.features.records import Example

from .evidence import Evidence, EvidenceSettings, gather, in_fixed_order
from .rules import Condition, Rule, TokenTable, best_rule, text_of
from .scores import judged
from .words import TOKEN, Lexicon

METHOD = "token-context"
AUTHOR = "saelab"
MOST_OTHERS = 8
"""Features after one whose rules are tried as its control, until one says something else."""


class RuleJudge:
    """Judges by applying a rule to the tokens of some windows."""

    def __init__(self, table: TokenTable):
        self._table, self._counted = table, table.counted()
        self._starts = [0, *table.ends.tolist()][:-1]
        self._index = {id(window): index for index, window in enumerate(table.examples)}
        self._applied: dict[Rule, Bool[np.ndarray, " tokens"]] = {}

    def detect(self, description: Rule, windows: Sequence[Example]) -> list[bool]:
        """Whether the rule holds at any counted token of each window."""
        said = self._said(description) & self._counted
        fires = np.logical_or.reduceat(said, self._starts).tolist()
        return [fires[self._index[id(window)]] for window in windows]

    def fuzz(
        self, description: Rule, windows: Sequence[tuple[Example, Collection[int]]]
    ) -> list[bool]:
        """Whether the rule holds at half of the marked tokens or more."""
        said = self._said(description).tolist()
        verdicts = []
        for window, marked in windows:
            start = self._starts[self._index[id(window)]]
            right = sum(said[start + piece] for piece in marked)
            verdicts.append(bool(marked) and 2 * right >= len(marked))
        return verdicts

    def simulate(
        self, description: Rule, windows: Sequence[Example]
    ) -> list[Float[np.ndarray, " _"]]:
        """1 where the rule holds, 0 elsewhere."""
        said = self._said(description).astype(float)
        starts = [self._starts[self._index[id(window)]] for window in windows]
        return [
            said[start : start + len(window.texts)]
            for start, window in zip(starts, windows, strict=True)
        ]

    def choose(
        self, description: Rule, pairs: Sequence[tuple[Example, Example]]
    ) -> list[float | None]:
        """Which text of each pair the rule holds at more often; 0.5 where that is equal."""
        often = [
            [float(holds.mean()) for holds in self.simulate(description, pair)] for pair in pairs
        ]
        return [0.5 if a == b else float(b > a) for a, b in often]

    def _said(self, rule: Rule) -> Bool[np.ndarray, " tokens"]:
        if rule not in self._applied:
            self._applied[rule] = self._table.matches(rule)
        return self._applied[rule]


def explanations(
    store: FeatureStore, features: Sequence[int], settings: EvidenceSettings, seed: int = 0
) -> Iterator[LabelContent]:
    """Explain and score features, in random order; those that never fire are left out.

    What is said of a feature, its scores and its controls are the same whichever others are asked
    for: its control is the rule of the feature after it in an order of all that fire.

    Args:
        store: an open feature store.
        features: which.
        settings: how many examples, and how wide.
        seed: of the evidence, the order and the controls.
    """
    order = in_fixed_order(np.flatnonzero(store.table()["n_active"]).tolist(), seed)
    lexicon = Lexicon()

    @lru_cache(maxsize=2 * MOST_OTHERS)
    def ruled(feature: int) -> tuple[Evidence, TokenTable, Rule]:
        evidence = gather(store, feature, settings, seed)
        table = TokenTable(lexicon, evidence.shown + evidence.contrast)
        return evidence, table, best_rule(table)

    wanted = set(features)
    for index, feature in enumerate(order):
        if feature not in wanted:
            continue
        evidence, table, rule = ruled(feature)
        others = (order + order)[index + 1 : index + min(len(order), 1 + MOST_OTHERS)]
        shuffled = next(
            (other for neighbour in others if (other := ruled(neighbour)[2]) != rule), None
        )
        rng = np.random.default_rng([seed, feature, 2])
        judge = RuleJudge(TokenTable(lexicon, evidence.held_out + evidence.quiet))
        scores = judged(
            judge,
            evidence,
            rule,
            shuffled=shuffled,
            random=_any_token(ruled(others[0])[1] if others else table, rng),
            seed=seed,
        )
        yield explanation_of(feature, text_of(rule, table), scores, method=METHOD)


def explanation_of(
    feature: int, text: str, scores: tuple[Score, ...], **origin: str
) -> LabelContent:
    """What goes into a label file; `origin` is method, model and prompt hash."""
    detection = next((score.value for score in scores if score.name == "detection"), None)
    return LabelContent(
        feature=feature, text=text, author=AUTHOR, score=detection, scores=scores, **origin
    )


def _any_token(table: TokenTable, rng: np.random.Generator) -> Rule:
    """A rule that names a token of some text and explains nothing."""
    tokens = table.attributes("is")[:, TOKEN]
    return Rule((Condition("is", (int(rng.choice(tokens)),)),))
