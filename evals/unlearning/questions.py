"""Multiple-choice questions, answered by the likelihood of their choices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.errors import TextError
from saelab.model.language_model import LanguageModel
from saelab.text.contexts import TextBatch
from saelab.text.sources import read_records
from saelab.text.tokens import PADDING

LETTERS = "ABCDEFGHIJ"
FORM = (
    'a record has "question", "choices" (a list, or one as JSON text) and "answer" (an index from '
    "0, a letter, or the choice itself)"
)


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question, what may be answered, and the index of the right answer."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, eq=False)
class AskedQuestions:
    """Questions with each of their choices behind it, as windows of tokens."""

    text: TextBatch
    counted: Bool[Tensor, "windows predictions"]
    """The positions that predict a token of the choice."""
    n_bytes: Float[Tensor, " windows"]
    """Bytes of each choice."""
    questions: tuple[ChoiceQuestion, ...]

    def correct(self, losses: Float[Tensor, " windows"]) -> Bool[Tensor, " questions"]:
        """Whether the likeliest choice is the answer: the least loss for each of its bytes.

        Args:
            losses: of each window, summed over `counted`, nats.
        """
        sizes = [len(each.choices) for each in self.questions]
        of_question = (losses / self.n_bytes).split(sizes)
        pairs = zip(of_question, self.questions, strict=True)
        return torch.tensor([int(scores.argmin()) == each.answer for scores, each in pairs])

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return sum(1 / len(each.choices) for each in self.questions) / len(self.questions)


def read_questions(file: Path) -> tuple[ChoiceQuestion, ...]:
    """Every question of a CSV, JSON, JSONL or parquet file.

    Raises:
        TextError: the file cannot be read, holds none, or a record of it is no question.
    """
    questions = tuple(
        _question_of(record, f"question {number} of {file}")
        for number, record in enumerate(read_records(file), 1)
    )
    if not questions:
        raise TextError(f"{file} holds no questions: {FORM}")
    return questions


def _question_of(record: Mapping[str, Any], name: str) -> ChoiceQuestion:
    missing = [key for key in ("question", "choices", "answer") if record.get(key) in (None, "")]
    if missing:
        raise TextError(f"{name} has no {', '.join(missing)}: {FORM}")
    choices = record["choices"]
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            choices = None
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        raise TextError(f"{name} has choices {record['choices']!r}, which are no list: {FORM}")
    choices = tuple(str(choice).strip() for choice in choices)
    if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choices):
        raise TextError(f"{name} has choices {[*choices]}: expected two or more different texts")
    answer = record["answer"]
    index = answer if isinstance(answer, int) else _index_of(str(answer).strip(), choices)
    if index is None or not 0 <= index < len(choices):
        raise TextError(f"{name} has answer {answer!r}, which is none of its choices: {FORM}")
    return ChoiceQuestion(str(record["question"]).strip(), choices, int(index))


def _index_of(answer: str, choices: Sequence[str]) -> int | None:
    if answer in choices:
        return choices.index(answer)
    if answer.isdecimal():
        return int(answer)
    return LETTERS.index(answer) if len(answer) == 1 and answer in LETTERS else None


def ask(model: LanguageModel, questions: Sequence[ChoiceQuestion]) -> AskedQuestions:
    """Each choice behind "question\\nAnswer:", padded to one length.

    Raises:
        TextError: a question longer than the model's context.
    """
    bos = [] if model.bos_id is None else [model.bos_id]
    prompts = model.tokenize([f"{each.question}\nAnswer:" for each in questions])
    flat = [(index, choice) for index, each in enumerate(questions) for choice in each.choices]
    endings = model.tokenize([f" {choice}" for _, choice in flat])
    windows = [
        (bos + prompts[index], ending) for (index, _), ending in zip(flat, endings, strict=True)
    ]
    longest = max(len(prompt) + len(ending) for prompt, ending in windows)
    if longest > model.max_context:
        raise TextError(
            f"the longest question has {longest} tokens with its choice, more than the "
            f"{model.max_context} that {model.name} takes: leave it out"
        )
    tokens = torch.full((len(windows), longest), model.separator_id or 0)
    states = torch.full((len(windows), longest), PADDING, dtype=torch.uint8)
    counted = torch.zeros(len(windows), longest - 1, dtype=torch.bool)
    for row, (prompt, ending) in enumerate(windows):
        end = len(prompt) + len(ending)
        tokens[row, :end], states[row, :end] = torch.tensor(prompt + ending), 0
        counted[row, len(prompt) - 1 : end - 1] = True
    n_bytes = torch.tensor([float(len(choice.encode())) for _, choice in flat]).double()
    return AskedQuestions(TextBatch(tokens, states), counted, n_bytes, tuple(questions))
