"""A task: prompts whose attributes are known, how to change one, and how an answer is judged.

Pure data and functions. Nothing here knows any particular task, and a task knows no dictionary:
it says which attributes a prompt has and what the model should answer, and that is all a suite
needs (arXiv 2405.08366, section 3.1).
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, did_you_mean

Split = Literal["train", "validation", "test", "unseen_frame"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "unseen_frame")
"""train: dictionaries are fitted; validation: features are judged and chosen; test: edits are
scored, on combinations of values that the others do not have; unseen_frame: as test, in a sentence
that the others do not have."""

Labels = Mapping[str, str]
"""Attribute -> value."""
Parametrisation = Mapping[str, Callable[[Labels], str]]
"""Design attribute -> its value for the labels of a prompt."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of a task, as tokens of a certain model."""

    tokens: tuple[int, ...]
    """Token ids, the model's start token first, without padding."""
    labels: Labels
    """The value of each attribute."""
    positions: Mapping[str, int]
    """Where each named place is in `tokens`; "end" is the last token."""
    correct: tuple[int, ...]
    """Tokens that would be a right answer."""
    incorrect: tuple[int, ...]
    """Tokens that would be the wrong answer to compare with."""
    meta: Labels = field(default_factory=dict)
    """What else the prompt was made from; a counterfactual keeps it."""


Metric = Callable[[Tensor, Sequence[Prompt]], Tensor]
"""From the logits [batch d_vocab] at the end of each prompt to one number for each."""


def logit_difference(
    logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[Prompt]
) -> Float[Tensor, " batch"]:
    """Mean logit of the right answers minus mean logit of the wrong ones, per prompt."""
    return _answer_mean(logits, [p.correct for p in prompts]) - _answer_mean(
        logits, [p.incorrect for p in prompts]
    )


def most_likely(logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]:
    """The token with the largest logit."""
    return logits.argmax(-1)


def most_likely_of(
    logits: Float[Tensor, "batch d_vocab"], tokens: Sequence[int]
) -> Int[Tensor, " batch"]:
    """The token with the largest logit among some."""
    among = torch.tensor(tokens, device=logits.device)
    return among[logits[:, among].argmax(-1)]


def probability_difference(
    logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[Prompt]
) -> Float[Tensor, " batch"]:
    """Probability of all right answers minus that of all wrong ones, per prompt."""
    probabilities = logits.float().softmax(-1)
    sides = ([p.correct for p in prompts], [p.incorrect for p in prompts])
    right, wrong = (
        _answer_mean(probabilities, side)
        * torch.tensor([len(ids) for ids in side], device=logits.device)
        for side in sides
    )
    return right - wrong


def _answer_mean(
    values: Float[Tensor, "batch d_vocab"], answers: Sequence[tuple[int, ...]]
) -> Float[Tensor, " batch"]:
    longest = max(len(ids) for ids in answers)
    ids = torch.tensor([[*row, *row[:1] * (longest - len(row))] for row in answers])
    known = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in answers])
    ids, known = ids.to(values.device), known.to(values.device)
    return (values.gather(1, ids) * known).sum(1) / known.sum(1)


@dataclass(frozen=True, kw_only=True)
class Role:
    """Heads that do the same thing, found by what patching their output does."""

    name: str
    """What the heads are called."""
    edit: tuple[str, ...]
    """Attributes that the counterfactual changes."""
    position: str
    """Where the head's output z is patched."""
    n_heads: int
    """How many heads at most."""
    not_in: tuple[str, ...] = ()
    """Roles whose heads are left out."""


@dataclass(frozen=True, kw_only=True)
class CrossSectionTemplate:
    """Sites of the heads of some roles that are patched at once."""

    name: str
    """What the cross-section is called."""
    roles: tuple[str, ...]
    """The roles whose heads take part."""
    parts: tuple[tuple[str, str], ...]
    """(kind of site, position) of each head."""
    edits: tuple[tuple[str, ...], ...]
    """Attribute sets worth editing there."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A family of prompts with known attributes, for one model's tokenizer."""

    name: str
    """What the command line calls it."""
    title: str
    """One line that says what the model has to do."""
    attributes: Mapping[str, tuple[str, ...]]
    """Attribute -> all its values."""
    positions: tuple[str, ...]
    """Named places that every prompt has."""
    answer_tokens: tuple[int, ...]
    """Every token that is a right or wrong answer to some prompt."""
    sample: Callable[[int, str, int], list[Prompt]]
    """(number, split, seed) -> prompts."""
    counterfactual: Callable[[Prompt, Mapping[str, str | None], random.Random], Prompt | None]
    """(prompt, attribute -> new value, or None to draw one, random) -> the prompt that differs in
    those attributes only; None where there is none."""
    edits: tuple[tuple[str, ...], ...]
    """Attribute sets worth editing."""
    nested: Mapping[str, str] = field(default_factory=dict)
    """Attribute -> the coarser attribute that it determines; changing the coarse one changes both.
    """
    exclusive: tuple[tuple[str, str], ...] = ()
    """Pairs of attributes that never have the same value."""
    groups: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    """Attribute -> grouping -> value -> group, for predicates coarser than a value."""
    parametrisations: Mapping[str, Parametrisation] = field(default_factory=dict)
    """Ways to describe a prompt to a supervised dictionary; "independent" needs no entry."""
    roles: tuple[Role, ...] = ()
    """Kinds of heads to be found."""
    cross_sections: tuple[CrossSectionTemplate, ...] = ()
    """What to patch at once, in terms of roles."""
    metric: Metric = logit_difference
    """How well the logits answer: larger is better."""
    predict: Callable[[Tensor], Tensor] = most_likely
    """From logits [batch d_vocab] to the predicted token of each prompt."""

    def __post_init__(self) -> None:
        known, positions = set(self.attributes), set(self.positions)
        problems = [
            f"attribute {name!r} has no values" for name, v in self.attributes.items() if not v
        ]
        named = {name for edit in self.edits for name in edit}
        named |= {*self.nested, *self.nested.values(), *self.groups}
        named |= {name for role in self.roles for name in role.edit}
        problems += [
            f"attribute {name!r} is used but not declared" for name in sorted(named - known)
        ]
        used = {role.position for role in self.roles}
        used |= {position for section in self.cross_sections for _, position in section.parts}
        problems += [
            f"position {name!r} is used but not declared" for name in sorted(used - positions)
        ]
        roles = {name for section in self.cross_sections for name in section.roles}
        lost = sorted(roles - {role.name for role in self.roles})
        problems += [f"role {name!r} is used but not declared" for name in lost]
        if problems:
            raise ConfigError([f"task {self.name}: {problem}" for problem in problems])

    def parametrisation(self, name: str) -> Parametrisation:
        """A way to describe prompts to a supervised dictionary.

        Raises:
            ConfigError: the task has none of that name.
        """
        if name == "independent":
            return {attribute: _getter(attribute) for attribute in self.attributes}
        if name not in self.parametrisations:
            raise ConfigError(
                f"task {self.name} has no parametrisation {name!r}: choose one of "
                f"{', '.join(['independent', *self.parametrisations])}"
            )
        return self.parametrisations[name]


def _getter(attribute: str) -> Callable[[Labels], str]:
    return lambda labels: labels[attribute]


def padded_tokens(prompts: Sequence[Prompt]) -> Int[Tensor, "prompts seq"]:
    """Tokens of prompts side by side, padded on the right by repeating the last token."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    return torch.tensor(
        [prompt.tokens + prompt.tokens[-1:] * (longest - len(prompt.tokens)) for prompt in prompts]
    )


def positions_of(prompts: Sequence[Prompt], name: str) -> Int[Tensor, " prompts"]:
    """Where a named place is in each prompt.

    Raises:
        ConfigError: a prompt has no such place.
    """
    lost = next((prompt for prompt in prompts if name not in prompt.positions), None)
    if lost is not None:
        raise ConfigError(
            f"prompts of this task have no position {name!r}: choose one of "
            f"{', '.join(lost.positions)}"
        )
    return torch.tensor([prompt.positions[name] for prompt in prompts])


def counterfactual_pairs(
    task: Task, prompts: Sequence[Prompt], edit: Sequence[str], seed: int
) -> tuple[Int[Tensor, " pairs"], list[Prompt]]:
    """One counterfactual for each prompt that has one.

    Args:
        task: the task.
        prompts: the prompts to change.
        edit: the attributes to change, each to a value drawn for the prompt.
        seed: of the draws; the draw of a prompt depends on its place in the list only.

    Returns:
        (indices of the prompts that have one, their counterfactuals).

    Raises:
        ConfigError: the task has no such attribute.
    """
    unknown = [name for name in edit if name not in task.attributes]
    if unknown:
        raise ConfigError(
            f"task {task.name} has no attribute {unknown[0]!r} to edit: "
            f"choose among {', '.join(task.attributes)}"
        )
    rows, targets = [], []
    for row, prompt in enumerate(prompts):
        draw = random.Random(f"{seed} {' '.join(edit)} {row}")
        target = task.counterfactual(prompt, dict.fromkeys(edit), draw)
        if target is not None:
            rows.append(row)
            targets.append(target)
    return torch.tensor(rows, dtype=torch.int64), targets


_SLOT = re.compile(r"(\s?)\{(\w+)\}")
SPLIT_BUCKETS = {
    "train": range(6),
    "validation": range(6, 8),
    "test": range(8, 10),
    "unseen_frame": range(8, 10),
}


@runtime_checkable
class Tokenizer(Protocol):
    """What a task needs of a language model to be built."""

    @property
    def name(self) -> str:
        """Of the model, for messages."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that starts a context; None where there is none."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with no special token added."""
        ...


class FrameWriter:
    """Writes frames as tokens of one model and remembers every piece."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, list[tuple[str, str | None]]] = {}

    def piece(self, text: str) -> tuple[int, ...]:
        """The tokens of a text."""
        if text not in self._pieces:
            self._pieces[text] = tuple(self._tokenizer.tokenize([text])[0])
        return self._pieces[text]

    def token(self, word: str) -> int:
        """The one token of a word after a space."""
        return self.piece(f" {word}")[0]

    def write(
        self, frame: str, words: Mapping[str, str]
    ) -> tuple[tuple[int, ...], dict[str, list[int]]]:
        """A frame with words in its slots.

        Args:
            frame: a sentence with slots "{name}".
            words: what each slot holds.

        Returns:
            (tokens with the model's start token first, slot -> places of its words' last tokens).
        """
        start = self._tokenizer.bos_id
        tokens = [] if start is None else [start]
        ends: dict[str, list[int]] = {}
        for text, slot in self._cut(frame):
            tokens += self.piece(text if slot is None else text + words[slot])
            if slot is not None:
                ends.setdefault(slot, []).append(len(tokens) - 1)
        return tuple(tokens), ends

    def check(self, frame: str, words: Mapping[str, str]) -> None:
        """Refuse a frame whose tokens, written piece by piece, are not those of the whole sentence.

        Raises:
            ConfigError: they are not.
        """
        start = self._tokenizer.bos_id
        text = frame.format(**words)
        whole = [*([] if start is None else [start]), *self._tokenizer.tokenize([text])[0]]
        if list(self.write(frame, words)[0]) != whole:
            raise ConfigError(
                f"the tokenizer of {self._tokenizer.name} joins words of {text!r} across spaces, "
                "so the places of its words are not known: this task cannot be built for this model"
            )

    def _cut(self, frame: str) -> list[tuple[str, str | None]]:
        """Pieces (text, None) and slots (what comes before the word, slot)."""
        if frame not in self._parts:
            parts: list[tuple[str, str | None]] = []
            end = 0
            for match in _SLOT.finditer(frame):
                if match.start() > end:
                    parts.append((frame[end : match.start()], None))
                parts.append((match.group(1), match.group(2)))
                end = match.end()
            if end < len(frame):
                parts.append((frame[end:], None))
            self._parts[frame] = parts
        return self._parts[frame]


def listed(words: str) -> tuple[str, ...]:
    """Words of a text, in its order."""
    return tuple(words.split())


def single_tokens(
    tokenizer: Tokenizer, words: Sequence[str], *, at_least: int, what: str, task: str
) -> tuple[str, ...]:
    """The words that are one token after a space, in their order.

    Raises:
        ConfigError: there are fewer than the task needs.
    """
    tokens = tokenizer.tokenize([f" {word}" for word in words])
    kept = tuple(word for word, ids in zip(words, tokens, strict=True) if len(ids) == 1)
    if len(kept) < at_least:
        raise ConfigError(
            f"task {task}: only {len(kept)} of its {len(words)} {what} are single tokens of "
            f"{tokenizer.name}, and {at_least} are needed: this task cannot be built for this "
            "model; choose another task or model"
        )
    return kept


def in_split(split: str, *values: str) -> bool:
    """Whether a combination of values belongs to a split: six tenths of all to train, two to
    validation, two to test, whatever their order and whatever else is in the prompt."""
    return zlib.crc32("|".join(sorted(values)).encode()) % 10 in SPLIT_BUCKETS[split]


def require_split(split: str) -> None:
    """Refuse a split that there is not.

    Raises:
        ConfigError: it is none.
    """
    if split not in SPLIT_BUCKETS:
        raise ConfigError(f"split {split!r} is unknown: choose one of {', '.join(SPLIT_BUCKETS)}")


def frames_of(split: str, frames: Sequence[str], unseen: str) -> tuple[str, ...]:
    """The frames of a split: one is kept for "unseen_frame"."""
    return (unseen,) if split == "unseen_frame" else tuple(frames)


TASKS = ("ioi", "greater_than", "subject_verb_agreement", "gendered_pronoun")
"""Tasks by name; each is a module of that name here with a function `NAME_task(tokenizer)`."""


def load_task(name: str, tokenizer: Tokenizer) -> Task:
    """A task for the tokenizer of a model.

    Args:
        name: one of `TASKS`.
        tokenizer: the language model, or whatever tokenises like it.

    Raises:
        ConfigError: no such task, or one whose words this tokenizer does not keep whole.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}: {did_you_mean(name, TASKS)}")
    build = getattr(import_module(f".{name}", __package__), f"{name}_task")
    return build(tokenizer)
