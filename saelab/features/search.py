"""Searching the features of a store, and their labels, for what a query says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from .query import FIELDS, Matcher, Term, parse_query
from .unpacking import TOKEN_SEPARATOR

SPLIT_AT_ONCE = 4096
"""Features at a time: all tokens as text take ten times their place here."""
ABSENT = np.iinfo(np.int32).max
TITLES = {"label": "label", "top_tokens": "top tokens", "promoted_tokens": "promoted tokens"}
"""Fields as a reader calls them, the one that counts most first."""


class TokenIndex:
    """The distinct tokens of a text column; a search looks at each of them once."""

    def __init__(self, column: Sequence[str]):
        """Of the tokens of every feature, joined as the store does."""
        numbers: dict[str, int] = defaultdict(lambda: len(numbers))
        parts = [np.zeros(0, np.int32)]
        for start in range(0, len(column), SPLIT_AT_ONCE):
            tokens = TOKEN_SEPARATOR.join(column[start : start + SPLIT_AT_ONCE]).split(
                TOKEN_SEPARATOR
            )
            parts.append(np.fromiter(map(numbers.__getitem__, tokens), np.int32, len(tokens)))
        self._ids = np.concatenate(parts)
        self._starts = np.cumsum([0, *(joined.count(TOKEN_SEPARATOR) + 1 for joined in column)])
        self._tokens = list(numbers)

    def places(self, matches: Callable[[str], bool]) -> Int[np.ndarray, " features"]:
        """Place of the first token that matches among each feature's; `ABSENT` where none does."""
        # A feature without tokens is split into one that is empty.
        wanted = np.array([bool(token) and matches(token) for token in self._tokens], bool)
        entries = np.flatnonzero(wanted[self._ids])
        features = np.searchsorted(self._starts, entries, side="right") - 1
        places = np.full(len(self._starts) - 1, ABSENT)
        features, first = np.unique(features, return_index=True)
        places[features] = entries[first] - self._starts[features]
        return places


class Hits(NamedTuple):
    """The features that a search hits."""

    features: Int[np.ndarray, " hits"]
    """Labels first, as a person's words count most; then by place among the top tokens."""
    places: dict[str, Int[np.ndarray, " features"]]
    """By field: the first place at which a part of the query is there, else `ABSENT`."""

    def where(self, feature: int) -> str:
        """In which fields a feature was hit."""
        return ", ".join(TITLES[name] for name in TITLES if self.places[name][feature] < ABSENT)


def search(
    indices: Mapping[str, TokenIndex], labels: Mapping[int, str], n_features: int, query: str
) -> Hits:
    """The features that satisfy every part of a query; see `query.HELP`.

    Args:
        indices: of the columns top_tokens and promoted_tokens.
        labels: text by feature.

    Raises:
        ConfigError: the query cannot be read, or an expression takes too long.
    """
    matcher, keep = Matcher(), np.ones(n_features, bool)
    best = {name: np.full(n_features, ABSENT) for name in TITLES}

    def places(term: Term, name: str) -> Int[np.ndarray, " features"]:
        matches = matcher.of(term)
        if name in indices:
            return indices[name].places(matches)
        hit = np.full(n_features, ABSENT)
        hit[[feature for feature, text in labels.items() if matches(text)]] = 0
        return hit

    for term in parse_query(query):
        names = TITLES if term.field is None else (FIELDS[term.field],)
        at = {name: places(term, name) for name in names}
        has = np.any([first < ABSENT for first in at.values()], axis=0)
        keep &= ~has if term.negated else has
        for name, first in () if term.negated else at.items():
            best[name] = np.minimum(best[name], first)
    features = np.flatnonzero(keep)
    order = np.lexsort([best[name][features] for name in reversed(TITLES)])
    return Hits(features[order], best)
