"""What a piece of text is: a token, a word, a kind of word. The terms that rules are made of."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

NOTHING = -1
"""Stands for "no attribute" in tables of attributes."""
MOST_KINDS = 4
"""Kinds of word that one piece is counted in, at most."""
LONGEST_SHOWN = 40
"""Characters of a token that a text shows."""
WORD_LISTS = {
    "a pronoun": "i me my mine we us our ours you your yours he him his she her hers it its they "
    "them their theirs myself ourselves yourself himself herself itself themselves who whom whose",
    "a preposition": "of in to for with on at by from into upon under over between among against "
    "during through within without toward towards about before after above below near since until "
    "beyond behind across",
    "a determiner": "the a an this that these those each every any some no all both either neither "
    "such another",
    "a conjunction": "and or but nor yet because although though while whereas unless if than "
    "whether",
    "a form of “be”": "be is are was were been being am",
    "a form of “have”": "have has had having",
    "a modal verb": "will would shall should can could may might must ought cannot",
    "a month": "january february march april may june july august september october november "
    "december",
    "a weekday": "monday tuesday wednesday thursday friday saturday sunday",
    "a number in words": "one two three four five six seven eight nine ten eleven twelve twenty "
    "thirty forty fifty sixty seventy eighty ninety hundred thousand million millions billion "
    "billions trillion first second third fourth fifth",
    "a question word": "what when where which who whom whose why how",
    "a negation": "not no never nor none nothing neither without cannot",
}
ENDINGS = (
    *("ation", "ment", "ness", "able", "ible", "ence", "ance", "ship", "less", "ing", "ion"),
    *("ity", "ive", "ous", "ful", "ism", "ist", "ize", "est", "ed", "ly", "al", "er", "s"),
)
"""Endings that make a kind of word, the longest first."""
BEGINNINGS = (6, 4)
"""Letters that words may begin with, the more specific first."""
KINDS_OF_WORD = {
    word: tuple(kind for kind, others in WORD_LISTS.items() if word in others.split())
    for words in WORD_LISTS.values()
    for word in words.split()
}
QUOTES, BRACKETS, ENDS = "\"'“”‘’«»`", "()[]{}<>", ".!?"


class Attribute(NamedTuple):
    """One thing that is true of a piece."""

    sort: str
    """One of "token", "word", "ending", "beginning" and "kind"."""
    value: str
    """The token, the word, the letters, or the kind's name."""


class Lexicon:
    """The attributes of every piece met so far, numbered."""

    def __init__(self) -> None:
        self._pieces = _Numbers()
        self._numbers = _Numbers()
        self._table = np.zeros((0, WIDTH), np.int32)

    @property
    def attributes(self) -> list[Attribute]:
        """Attributes by number."""
        return self._numbers.all

    def table(self, texts: Sequence[str]) -> Integer[np.ndarray, "pieces attributes"]:
        """The attributes of each piece: its token, its word, …; `NOTHING` where it has none."""
        pieces = list(map(self._pieces.__getitem__, texts))
        fresh = [
            [
                NOTHING if attribute is None else self._numbers[attribute]
                for attribute in _attributes(text)
            ]
            for text in self._pieces.all[len(self._table) :]
        ]
        if fresh:
            self._table = np.concatenate([self._table, np.array(fresh, np.int32)])
        return self._table[np.array(pieces, np.int64)]


class _Numbers(dict[Any, int]):
    """A number for everything it is asked about."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        """By number."""

    def __missing__(self, key: Any) -> int:
        self[key] = len(self.all)
        self.all.append(key)
        return self[key]


def _attributes(text: str) -> Iterator[Attribute | None]:
    word = text.strip()
    lower = word.casefold()
    whole = text[:1].isspace() and word.isalpha() and len(word) > 4
    yield Attribute("token", text)
    yield Attribute("word", lower) if word else None
    ending = (
        next((candidate for candidate in ENDINGS if lower.endswith(candidate)), None)
        if whole
        else None
    )
    yield Attribute("ending", ending) if ending else None
    for size in BEGINNINGS:
        yield Attribute("beginning", lower[:size]) if whole and len(lower) >= size else None
    kinds = list(_kinds(text, word, lower))[:MOST_KINDS]
    yield from (Attribute("kind", kind) for kind in kinds)
    yield from [None] * (MOST_KINDS - len(kinds))


WIDTH = 3 + len(BEGINNINGS) + MOST_KINDS
TOKEN, WORD = 0, 1
"""Columns of a lexicon's table."""


def _kinds(text: str, word: str, lower: str) -> Iterator[str]:
    if not word:
        yield "a line break" if "\n" in text else "a space"
    elif word.isdigit():
        yield "a number"
    elif word.isalpha():
        yield from KINDS_OF_WORD.get(lower, ())
        if word.isupper() and len(word) > 1:
            yield "a word in capitals"
        elif word[0].isupper():
            yield "a capitalised word" if len(word) > 1 else "a single letter"
        elif not text[0].isspace():
            yield "a part of a word"
        if not word.isascii():
            yield "a word in other letters"
    elif not any(char.isalnum() for char in word):
        yield "a punctuation mark"
        yield from (
            kind
            for kind, members in (
                ("a quotation mark", QUOTES),
                ("a bracket", BRACKETS),
                ("the end of a sentence", ENDS),
            )
            if all(char in members for char in word)
        )


def quoted(text: str) -> str:
    """A token as a person would write it: without the space before it, nothing unprintable."""
    inside = "".join(_visible(char) for char in text.strip() or text)
    if len(inside) > LONGEST_SHOWN:
        inside = inside[: LONGEST_SHOWN - 1] + "…"
    return f"“{inside}”" if '"' in inside else f'"{inside}"'


@cache
def _visible(char: str) -> str:
    if char.isprintable():
        return char
    names = {"\n": "line break", "\t": "tab", "\r": "carriage return"}
    return f"<{names.get(char) or unicodedata.name(char, f'U+{ord(char):04X}').lower()}>"
