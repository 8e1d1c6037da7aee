"""What a label or an explanation says of a feature, and what keeps a text from being one."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from saelab.errors import shown

BY_HAND = "by hand"
EDITED = "edited"
"""Method of what a person made of an explanation."""
TOO_WEAK = "language-model (too weak)"
"""Method of texts that show how explaining works and are not worth reading."""
MAX_LABEL_WORDS, MAX_LABEL_CHARACTERS = 20, 200
MAX_EXPLANATION_WORDS, MAX_EXPLANATION_CHARACTERS = 60, 400
MAX_NOTE_CHARACTERS = 10_000
MAX_NAME_CHARACTERS = 100


@dataclass(frozen=True)
class Score:
    """How well an explanation predicts its feature, with the same number of things that cannot."""

    name: str
    """What was measured: a key of `SCORE_DEFINITIONS`, or another program's name."""
    value: float
    low: float | None = None
    """Ends of the 95 % interval over examples; None where there is none."""
    high: float | None = None
    n: int = 0
    """Items judged."""
    shuffled: float | None = None
    """Control: the same score of another feature's explanation."""
    random: float | None = None
    """Control: the same score of a text that explains nothing."""


SCORE_DEFINITIONS = {
    "detection": "balanced accuracy of telling held-out contexts in which the feature fires from "
    "those in which it does not; 0.5 is chance",
    "fuzzing": "balanced accuracy of telling held-out contexts whose marked tokens fire from those "
    "with others marked; 0.5 is chance",
    "simulation": "Pearson correlation of predicted and true activations over held-out tokens; "
    "0 is chance",
    "embedding": "share of pairs in which the explanation's embedding is nearer to a held-out "
    "context that fires than to one that does not (AUC); 0.5 is chance",
    "intervention": "share of right answers on which of two texts was written with the feature "
    "boosted; 0.5 is chance",
}
"""Name of a score -> what it says."""


@dataclass(frozen=True, kw_only=True)
class LabelContent:
    """What someone or something says a feature is, as it is given to be written."""

    feature: int
    text: str
    """One line: at most 20 words by hand, 60 of an explanation."""
    author: str
    """Who wrote it: a person or a program."""
    method: str = BY_HAND
    """How: "by hand", or the name of an automatic method."""
    score: float | None = None
    """One number of how well it predicts the feature, as the method says; None: none."""
    model: str | None = None
    """The language model that wrote it; None where there was none."""
    prompt_hash: str | None = None
    """Names the words the model was asked with."""
    scores: tuple[Score, ...] = ()

    @property
    def explains(self) -> bool:
        """Whether it is an explanation."""
        return self.method != BY_HAND

    def score_named(self, name: str) -> Score | None:
        """The score of this name; None where it was not measured."""
        return next((score for score in self.scores if score.name == name), None)


@dataclass(frozen=True, kw_only=True)
class Label(LabelContent):
    """A label or explanation as it stands in the book."""

    id: int
    """Names the label in its database."""
    created: str
    """When, ISO 8601, UTC."""
    votes_up: int = 0
    votes_down: int = 0


@dataclass(frozen=True)
class Note:
    """Free text about a feature."""

    feature: int
    text: str
    author: str
    """Who wrote it last."""
    created: str
    """When, ISO 8601, UTC."""


def one_each(labels: Iterable[Label]) -> dict[int, Label]:
    """Feature -> the label shown where there is room for one.

    People's words come before explanations, then what has more votes, then the newest; what a
    model that is too weak wrote is never it.
    """
    worth = (label for label in labels if label.method != TOO_WEAK)
    return {label.feature: label for label in sorted(worth, key=prominence)}


def prominence(label: Label) -> tuple[bool, bool, int, int]:
    """What labels of a feature are ordered by, the one shown first last."""
    by_person = label.method in (BY_HAND, EDITED)
    return by_person, label.method != TOO_WEAK, label.votes_up - label.votes_down, label.id


def problems_of(content: LabelContent) -> list[str]:
    """What keeps a text from being a label: explainers' chatter is refused by its length."""
    problems, text = [], content.text
    what, words, characters = "label", MAX_LABEL_WORDS, MAX_LABEL_CHARACTERS
    if content.explains:
        what, words, characters = (
            "explanation",
            MAX_EXPLANATION_WORDS,
            MAX_EXPLANATION_CHARACTERS,
        )
    if not text:
        problems.append(f"the {what} is empty: write a few words")
    if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in text):
        problems.append(f"the {what} has a line break or a control character: write one line")
    if len(text) > characters or len(text.split()) > words:
        problems.append(
            f"the {what} has {len(text.split())} words and {len(text)} characters: at most "
            f"{words} words and {characters} characters are kept; put the rest into the note"
        )
    problems += name_problems(content.author, "author") + name_problems(content.method, "method")
    if content.score is not None and not math.isfinite(content.score):
        problems.append(f"score {content.score} is not a finite number")
    return problems + [problem for score in content.scores for problem in score_problems(score)]


def score_problems(score: Score) -> list[str]:
    """What keeps it from being a score, be it given or read."""
    problems = []
    if not isinstance(score.name, str) or not 0 < len(score.name) <= MAX_NAME_CHARACTERS:
        problems.append(f"a score's name is {shown(score.name)}: expected a word")
    if type(score.n) is not int or score.n < 0:
        problems.append(f"score {score.name}: n is {shown(score.n)}, expected a count")
    for name in ("value", "low", "high", "shuffled", "random"):
        value = getattr(score, name)
        if value is None and name != "value":
            continue
        if not isinstance(value, int | float) or not math.isfinite(value):
            problems.append(
                f"score {score.name}: {name} is {shown(value)}, expected a finite number"
            )
    return problems


def name_problems(name: str, what: str) -> list[str]:
    """What keeps a text from naming an author or a method."""
    if not name:
        return [f"the {what} is empty: say who or what wrote this"]
    if len(name) > MAX_NAME_CHARACTERS:
        return [f"the {what} has {len(name)} characters: at most {MAX_NAME_CHARACTERS}"]
    return []
