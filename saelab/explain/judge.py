"""A language model as explainer and judge: questions asked, answers read.

An answer that is not in the form asked for is counted and judged as None, never guessed. Only an
explanation may be a bare sentence: what it is worth is measured in any case.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from saelab.features.label_content import MAX_EXPLANATION_CHARACTERS, MAX_EXPLANATION_WORDS
from saelab.features.records import Example

from . import prompts
from .answers import Asker
from .endpoint import Question

Item = TypeVar("Item")
Verdict = TypeVar("Verdict")

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_REFUSAL = re.compile(
    r"\s*(i['’]?m sorry|i am sorry|sorry, |i can(no|['’])t |i['’]m unable|i am unable|i won['’]t |"
    r"as an ai\b)",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(r"^(?:\**explanation\**:\**|[-*•]\s|\d+[.)]\s)\s*", re.IGNORECASE)
_YES_OR_NO = {1: True, 0: False, "yes": True, "no": False, "true": True, "false": False}


class Judge:
    """Explains and judges through one model.

    Args:
        ask: gives the answer to a question, and counts.
        windows_per_question: excerpts judged in one question.
        max_tokens: of one answer, thoughts included.
    """

    def __init__(self, ask: Asker, *, windows_per_question: int, max_tokens: int):
        self._ask = ask
        self._per_question, self._max_tokens = windows_per_question, max_tokens

    def explain(self, shown: Sequence[Example], contrast: Sequence[Example]) -> str | None:
        """What the model says that firing examples have in common; None where it says nothing."""
        question = prompts.explain(shown, contrast, self._max_tokens)
        return self._read(question, read_explanation)

    def detect(self, description: str, windows: Sequence[Example]) -> list[bool | None]:
        """Whether each window holds the feature; None where the answer could not be read."""
        return self._in_batches(description, windows, prompts.detect, _verdicts_on)

    def fuzz(
        self, description: str, windows: Sequence[tuple[Example, Collection[int]]]
    ) -> list[bool | None]:
        """Whether the marked pieces of each window are the feature's."""
        return self._in_batches(description, windows, prompts.fuzz, _verdicts_on)

    def simulate(
        self, description: str, windows: Sequence[Example]
    ) -> list[Float[np.ndarray, " pieces"] | None]:
        """Guessed activations from 0 to 10 on every piece of each window."""
        return self._in_batches(
            description,
            windows,
            prompts.simulate,
            lambda text, some: read_activations(text, [len(window.texts) for window in some]),
        )

    def which_was_steered(
        self, description: str, pairs: Sequence[tuple[Example, Example]]
    ) -> list[int | None]:
        """Of each pair of texts, the index of the one that leans to the description."""
        return [
            self._read(
                prompts.which_was_steered(
                    description, ("".join(a.texts), "".join(b.texts)), self._max_tokens
                ),
                read_choice,
            )
            for a, b in pairs
        ]

    def _in_batches(
        self,
        description: str,
        items: Sequence[Item],
        question: Callable[[str, Sequence[Item], int], Question],
        read: Callable[[str, Sequence[Item]], list[Verdict] | None],
    ) -> list[Verdict | None]:
        """What is said of each item, asked in an order that tells nothing, always the same."""
        verdicts: list[Verdict | None] = [None] * len(items)
        order = np.random.default_rng(zlib.crc32(description.encode())).permutation(len(items))
        for first in range(0, len(items), self._per_question):
            chosen = order[first : first + self._per_question].tolist()
            some = [items[index] for index in chosen]
            asked = question(description, some, self._max_tokens)
            said = self._read(asked, lambda text, some=some: read(text, some))
            for index, verdict in zip(chosen, said or [], strict=False):
                verdicts[index] = verdict
        return verdicts

    def _read(self, question: Question, read: Callable[[str], Verdict | None]) -> Verdict | None:
        answer = self._ask(question)
        if answer.refused:
            return None
        text = _THOUGHTS.sub("", answer.text).strip()
        verdict = read(text)
        if verdict is None:
            self._ask.note_unreadable(refused=_REFUSAL.match(text) is not None)
        return verdict


def read_explanation(text: str) -> str | None:
    """The explanation in an answer: from its JSON, or else the first sentence that it says."""
    explanation = _field(text, "explanation")
    if explanation is None and "{" not in text:
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        # "Here is what I found:" announces one, and a word alone among lines is none.
        said = (line for line in lines if line[-1] != ":" and (" " in line or len(lines) == 1))
        sentence, *_ = re.split(r"(?<=[.!?])\s", _LIST_MARK.sub("", next(said, "")))
        explanation = sentence.removesuffix(".")
    if not isinstance(explanation, str) or _REFUSAL.match(explanation):
        return None
    explanation = " ".join(explanation.split()).strip('"')
    odd = any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in explanation)
    fits = (
        len(explanation) <= MAX_EXPLANATION_CHARACTERS
        and len(explanation.split()) <= MAX_EXPLANATION_WORDS
    )
    return explanation if explanation and fits and not odd else None


def read_verdicts(text: str, count: int) -> list[bool] | None:
    """Yes or no for each of so many windows; None where there are more, fewer or others."""
    answers = _field(text, "answers")
    if not isinstance(answers, list) or len(answers) != count:
        return None
    plain = [answer.lower() if isinstance(answer, str) else answer for answer in answers]
    if not all(isinstance(answer, bool | int | str) and answer in _YES_OR_NO for answer in plain):
        return None
    return [_YES_OR_NO[answer] for answer in plain]


def read_activations(
    text: str, lengths: Sequence[int]
) -> list[Float[np.ndarray, " pieces"]] | None:
    """Strengths on the pieces of windows of some lengths; 0 where none is named."""
    named = _field(text, "active")
    guesses = [np.zeros(length) for length in lengths]
    if not isinstance(named, list):
        return None
    for guess in named:
        numbers = [
            guess.get(name) if isinstance(guess, dict) else None
            for name in ("excerpt", "token", "strength")
        ]
        if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
            return None
        excerpt, token, strength = (int(number) for number in numbers if number is not None)
        inside = 1 <= excerpt <= len(lengths) and 1 <= token <= lengths[excerpt - 1]
        if not inside or not 0 <= strength <= prompts.SCALE:
            return None
        guesses[excerpt - 1][token - 1] = strength
    return guesses


def read_choice(text: str) -> int | None:
    """0 for text A, 1 for text B."""
    choice = _field(text, "text")
    return "AB".index(choice) if choice in ("A", "B") else None


def _verdicts_on(text: str, windows: Sequence[Any]) -> list[bool] | None:
    return read_verdicts(text, len(windows))


def _field(text: str, name: str) -> Any:
    """A field of the first JSON object in a text that has it; None where there is none."""
    decoder = json.JSONDecoder()
    for match in list(re.finditer(r"\{", text))[:20]:
        try:
            content, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict) and name in content:
            return content[name]
    return None
