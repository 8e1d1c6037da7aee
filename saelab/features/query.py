"""What a reader types into a search box: words, "phrases", /expressions/, fields and negations."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import regex

from saelab.errors import ConfigError, shown

FIELDS = {"token": "top_tokens", "promotes": "promoted_tokens", "label": "label"}
"""By name in a query: column of the store, or the label."""
LONGEST_EXPRESSION = 200
SECONDS_FOR_EXPRESSIONS = 1.0
"""All expressions of a query together; some take longer than a life."""
HELP = (
    'Every part must be found: words from their start, "phrases" as they stand, /expressions/ as '
    "Python's, within one token or label; case and accents count in expressions only. A minus "
    "leaves out what has the part. token:, promotes: and label: before a part say where to look, "
    'as in token:war -label:"civil war" promotes:/^ [A-Z]/.'
)
_PART = re.compile(
    r"""(?P<minus>-?)(?:(?P<field>token|promotes|label):)?(?:"(?P<phrase>(?:[^"\\]|\\.)+)"|"""
    r"""/(?P<expression>(?:[^/\\]|\\.)+)/(?!\S)|(?P<word>\S+))""",
    re.DOTALL,
)
_BARE_FIELD = re.compile("-?(?:token|promotes|label):")


@dataclass(frozen=True)
class Term:
    """One part of a query."""

    text: str
    """What is looked for."""
    kind: Literal["word", "phrase", "expression"]
    field: str | None = None
    """Where, as a key of `FIELDS`; None: anywhere."""
    negated: bool = False
    """Whether features that have it are left out."""


def parse_query(text: str) -> tuple[Term, ...]:
    """The parts of a query, which a feature must all satisfy.

    Raises:
        ConfigError: a phrase or expression that is not closed, or an expression that is none.

    Example:
        >>> [(term.kind, term.text, term.negated) for term in parse_query('war -"civil war"')]
        [('word', 'war', False), ('phrase', 'civil war', True)]
    """
    terms, position = [], 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = _PART.match(text, position)
        assert match is not None  # what is no space begins a word at least
        terms.append(_term(match))
        position = match.end()
    return tuple(terms)


def _term(match: re.Match[str]) -> Term:
    field, negated = match["field"], bool(match["minus"])
    if phrase := match["phrase"]:
        return Term(re.sub(r'\\(["\\])', r"\1", phrase), "phrase", field, negated)
    if expression := match["expression"]:
        _compiled(expression)
        return Term(expression, "expression", field, negated)
    word = match["word"]
    if not any(map(str.isalnum, word)):
        # Signs are looked for as they stand, dashes too.
        return Term(match[0] if field is None else word, "word", field, negated and bool(field))
    if _BARE_FIELD.fullmatch(match[0]):
        raise ConfigError(f"{match[0]} stands alone: write what to look for behind it")
    for sign, what in (('"', "phrase"), ("/", "expression")):
        if word.startswith(sign):
            raise ConfigError(
                f"the {what} {shown(word)} is not closed: end it with {sign}, or put what is "
                f"looked for into quotes ({sign} itself as " + ('\\")' if sign == '"' else "it is)")
            )
    return Term(word, "word", field, negated)


def _compiled(expression: str) -> regex.Pattern[str]:
    if len(expression) > LONGEST_EXPRESSION:
        raise ConfigError(
            f"the expression has {len(expression)} characters: at most {LONGEST_EXPRESSION} are "
            "looked for"
        )
    try:
        return regex.compile(expression)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"/{expression}/ is no regular expression: {error}") from None


class Matcher:
    """Whether texts hold what a query's parts look for; expressions share a second."""

    def __init__(self) -> None:
        self._ends: float | None = None

    def of(self, term: Term) -> Callable[[str], bool]:
        """A test of one text.

        Raises:
            ConfigError: in the test, where the time is over.
        """
        if term.kind == "expression":
            pattern = _compiled(term.text)
            return lambda text: self._search(pattern, text)
        needle = _folded(term.text)
        if not needle:  # nothing but accents
            return lambda text: term.text in text
        if term.kind == "word" and needle[0].isalnum():
            start = re.compile(r"(?<![^\W_])" + re.escape(needle))
            return lambda text: start.search(_folded(text)) is not None
        return lambda text: needle in _folded(text)

    def _search(self, pattern: regex.Pattern[str], text: str) -> bool:
        now = time.monotonic()
        self._ends = self._ends or now + SECONDS_FOR_EXPRESSIONS
        try:
            return pattern.search(text, timeout=max(self._ends - now, 1e-6)) is not None
        except TimeoutError:
            raise ConfigError(
                f"/{pattern.pattern}/ takes longer than {SECONDS_FOR_EXPRESSIONS:g} s: repeat "
                "nothing inside a repeat, as in (a+)+"
            ) from None


def _folded(text: str) -> str:
    """Without case and accents."""
    if text.isascii():
        return text.lower()
    split = unicodedata.normalize("NFD", text.casefold())
    return "".join(char for char in split if unicodedata.category(char) != "Mn")
