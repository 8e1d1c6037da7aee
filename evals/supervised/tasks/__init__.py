"""A task: prompts whose attributes are known, how to change one, and how an answer is judged.

Pure data and functions. This module knows no particular task, and a task knows no dictionary:
it says which attributes a prompt has and what the model should answer, and that is all a suite
needs (arXiv 2405.08366, section 3.1).
"""

from __future__ import annotations

import random
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from operator import itemgetter
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saelab.errors import ConfigError, did_you_mean

SPLIT_BUCKETS = {
    "train": range(6),
    "validation": range(6, 8),
    "test": range(8, 10),
    "unseen_frame": range(8, 10),
}
SPLITS = tuple(SPLIT_BUCKETS)
"""train: dictionaries are fitted; validation: features are judged and chosen; test: edits are
scored, on combinations of values that the others do not have; unseen_frame: as test, in a sentence
that the others do not have."""

Labels = Mapping[str, str]
"""Attribute -> value."""
Parametrisation = Mapping[str, Callable[[Labels], str]]
"""Design attribute -> its value for the labels of a prompt."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a task, as tokens of a certain model."""

    tokens: tuple[int, ...]
    """Token ids, the model's start token first, without padding."""
    labels: Labels
    """The value of each attribute."""
    positions: Mapping[str, int]
    """Named position -> index in `tokens`; "end" is the last token."""
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
    right, n_right = _answer_sums(logits, [prompt.correct for prompt in prompts])
    wrong, n_wrong = _answer_sums(logits, [prompt.incorrect for prompt in prompts])
    return right / n_right - wrong / n_wrong


def probability_difference(
    logits: Float[Tensor, "batch d_vocab"], prompts: Sequence[Prompt]
) -> Float[Tensor, " batch"]:
    """Probability of all right answers minus that of all wrong ones, per prompt."""
    probabilities = logits.float().softmax(-1)
    right, _ = _answer_sums(probabilities, [prompt.correct for prompt in prompts])
    wrong, _ = _answer_sums(probabilities, [prompt.incorrect for prompt in prompts])
    return right - wrong


def _answer_sums(
    values: Float[Tensor, "batch d_vocab"], answers: Sequence[tuple[int, ...]]
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Sum over each prompt's answer tokens, and how many there are."""
    rows = [torch.tensor(ids, device=values.device) for ids in answers]
    tokens = pad_sequence(rows, batch_first=True, padding_value=-1)
    known = tokens >= 0
    return torch.where(known, values.gather(1, tokens.clamp_min(0)), 0).sum(1), known.sum(1)


def most_likely(logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]:
    """The token with the largest logit."""
    return logits.argmax(-1)


def most_likely_of(
    logits: Float[Tensor, "batch d_vocab"], tokens: Sequence[int]
) -> Int[Tensor, " batch"]:
    """The token with the largest logit among some."""
    among = torch.tensor(tokens, device=logits.device)
    return among[logits[:, among].argmax(-1)]


@dataclass(frozen=True)
class Role:
    """Heads that do the same thing, selected by what patching their output does."""

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


@dataclass(frozen=True)
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
    """Named positions that every prompt has."""
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
    exclusive: tuple[tuple[str, ...], ...] = ()
    """Sets of attributes of which no two have the same value."""
    groups: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    """Attribute -> grouping -> value -> group, for predicates coarser than a value."""
    parametrisations: Mapping[str, Parametrisation] = field(default_factory=dict)
    """Ways to describe a prompt to a supervised dictionary; "independent" needs no entry."""
    roles: tuple[Role, ...] = ()
    """Kinds of heads to search for."""
    cross_sections: tuple[CrossSectionTemplate, ...] = ()
    """What to patch at once, in terms of roles."""
    metric: Metric = logit_difference
    """How well the logits answer: larger is better."""
    predict: Callable[[Tensor], Tensor] = most_likely
    """From logits [batch d_vocab] to the predicted token of each prompt."""

    def __post_init__(self) -> None:
        problems = [
            f"attribute {name!r} has no values" for name, v in self.attributes.items() if not v
        ]
        sections, roles = self.cross_sections, self.roles
        edited = {name for edit in (*self.edits, *(r.edit for r in roles)) for name in edit}
        attributes = edited.union(self.nested, self.nested.values(), self.groups)
        positions = {role.position for role in roles}.union(p for s in sections for _, p in s.parts)
        for what, used, declared in (
            ("attribute", attributes, self.attributes),
            ("position", positions, self.positions),
            ("role", {name for s in sections for name in s.roles}, [role.name for role in roles]),
        ):
            undeclared = sorted(used.difference(declared))
            problems += [f"{what} {name!r} is used but not declared" for name in undeclared]
        if problems:
            raise ConfigError([f"task {self.name}: {problem}" for problem in problems])

    def parametrisation(self, name: str) -> Parametrisation:
        """A way to describe prompts to a supervised dictionary.

        Raises:
            ConfigError: the task has none of that name.
        """
        if name == "independent":
            return {attribute: itemgetter(attribute) for attribute in self.attributes}
        if name not in self.parametrisations:
            raise ConfigError(
                f"task {self.name} has no parametrisation {name!r}: choose one of "
                f"{', '.join(['independent', *self.parametrisations])}"
            )
        return self.parametrisations[name]


def padded_tokens(prompts: Sequence[Prompt]) -> Int[Tensor, "prompts seq"]:
    """Tokens of prompts side by side, padded on the right by repeating the last token."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    return torch.tensor(
        [prompt.tokens + prompt.tokens[-1:] * (longest - len(prompt.tokens)) for prompt in prompts]
    )


def positions_of(prompts: Sequence[Prompt], name: str) -> Int[Tensor, " prompts"]:
    """Index of a named position in each prompt.

    Raises:
        ConfigError: a prompt has no such position.
    """
    for prompt in prompts:
        if name not in prompt.positions:
            raise ConfigError(
                f"prompts of this task have no position {name!r}: choose one of "
                f"{', '.join(prompt.positions)}"
            )
    return torch.tensor([prompt.positions[name] for prompt in prompts])


def counterfactual_pairs(
    task: Task, prompts: Sequence[Prompt], edit: Sequence[str], seed: int
) -> tuple[Int[Tensor, " pairs"], list[Prompt]]:
    """One counterfactual for each prompt that has one.

    Args:
        edit: the attributes to change, each to a value drawn for the prompt.
        seed: of the draws; the draw of a prompt depends on its index in the list only.

    Returns:
        (indices of the prompts that have one, their counterfactuals).

    Raises:
        ConfigError: the task has no such attribute.
    """
    for name in edit:
        if name not in task.attributes:
            raise ConfigError(
                f"task {task.name} has no attribute {name!r} to edit: "
                f"choose among {', '.join(task.attributes)}"
            )
    pairs = {}
    for row, prompt in enumerate(prompts):
        draw = random.Random(f"{seed} {' '.join(edit)} {row}")
        target = task.counterfactual(prompt, dict.fromkeys(edit), draw)
        if target is not None:
            pairs[row] = target
    return torch.tensor(list(pairs), dtype=torch.int64), list(pairs.values())


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


_SLOT = re.compile(r"(\s?)\{(\w+)\}")


class FrameWriter:
    """Writes frames as tokens of one model and remembers every piece."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._start = () if tokenizer.bos_id is None else (tokenizer.bos_id,)

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
            (tokens with the model's start token first, slot -> indices of its words' last tokens).
        """
        tokens, ends = self._start, {}
        # Text, what comes before a word, its slot, text, …
        texts = _SLOT.split(frame)
        for text, before, slot in zip(texts[::3], texts[1::3], texts[2::3], strict=False):
            tokens += self.piece(text) if text else ()
            tokens += self.piece(before + words[slot])
            ends.setdefault(slot, []).append(len(tokens) - 1)
        return tokens + (self.piece(texts[-1]) if texts[-1] else ()), ends

    def check(self, frame: str, words: Mapping[str, str]) -> None:
        """Refuse a frame whose tokens, written piece by piece, are not those of the whole sentence.

        Raises:
            ConfigError: they are not.
        """
        text = frame.format(**words)
        if self.write(frame, words)[0] != (*self._start, *self._tokenizer.tokenize([text])[0]):
            raise ConfigError(
                f"the tokenizer of {self._tokenizer.name} joins words of {text!r} across spaces, "
                "so the positions of its words are not known: this task cannot be built for it"
            )


Drawn = tuple[dict[str, str], dict[str, str]] | None
"""(labels, meta with a frame); None where they belong to another split."""


class FramePrompts(FrameWriter, ABC):
    """How prompts are drawn, written and changed whose sentences are frames with words in slots.

    Args:
        pools: attribute -> the values that a counterfactual draws from.
        example: a word for every slot, with which all frames are checked.
    """

    name: str
    """The task's name."""
    frames: tuple[str, ...]
    unseen_frame: str
    """The frame of the split "unseen_frame"."""
    exclusive: tuple[tuple[str, ...], ...] = ()
    """As `Task.exclusive`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        pools: Mapping[str, Sequence[str]],
        example: Mapping[str, str],
    ):
        super().__init__(tokenizer)
        self.pools = pools
        for frame in (*self.frames, self.unseen_frame):
            self.check(frame, example)

    @abstractmethod
    def draw_labels(self, draw: random.Random, split: str, frames: Sequence[str]) -> Drawn:
        """Labels and a frame, drawn uniformly."""

    @abstractmethod
    def build(self, labels: Labels, meta: Labels) -> Prompt:
        """The prompt of labels in the frame of `meta`."""

    def sample(self, n: int, split: str, seed: int) -> list[Prompt]:
        """Prompts of a split, drawn uniformly.

        Raises:
            ConfigError: there is no such split.
        """
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
        draw = random.Random(f"{self.name} {split} {seed}")
        frames = (self.unseen_frame,) if split == "unseen_frame" else self.frames
        prompts = []
        while len(prompts) < n:
            drawn = self.draw_labels(draw, split, frames)
            if drawn is not None:
                labels, meta = drawn
                prompts.append(self.build(labels, {**meta, "split": split}))
        return prompts

    def counterfactual(
        self, prompt: Prompt, changes: Mapping[str, str | None], draw: random.Random
    ) -> Prompt | None:
        """The prompt with other values of some attributes, drawn from their pools where None."""
        labels = dict(prompt.labels)
        for attribute, value in changes.items():
            apart = next((names for names in self.exclusive if attribute in names), (attribute,))
            taken = {row[name] for row in (prompt.labels, labels) for name in apart}
            left = [word for word in self.pools[attribute] if word not in taken]
            if value is None and not left:
                return None
            labels[attribute] = value or draw.choice(left)
        if any(len({labels[name] for name in names}) < len(names) for names in self.exclusive):
            return None
        return self.build(labels, prompt.meta)


def single_tokens(
    tokenizer: Tokenizer, words: str, *, at_least: int, what: str, task: str
) -> tuple[str, ...]:
    """The words that are one token after a space, in their order.

    Args:
        words: with spaces between them; forms of one word, with a slash between them, are kept
            if all are single tokens.
        at_least: how many the task needs.
        what: they are, for the message.

    Raises:
        ConfigError: there are fewer than the task needs.
    """
    listed = words.split()
    forms = [[f" {form}" for form in word.split("/")] for word in listed]
    kept = tuple(
        word
        for word, texts in zip(listed, forms, strict=True)
        if all(len(ids) == 1 for ids in tokenizer.tokenize(texts))
    )
    if len(kept) < at_least:
        raise ConfigError(
            f"task {task}: only {len(kept)} of its {len(listed)} {what} are single tokens of "
            f"{tokenizer.name}, and {at_least} are needed: this task cannot be built for this "
            "model; choose another task or model"
        )
    return kept


def in_split(split: str, *values: str) -> bool:
    """Whether a combination of values belongs to a split: six tenths of all to train, two to
    validation, two to test, whatever their order and whatever else is in the prompt."""
    return zlib.crc32("|".join(sorted(values)).encode()) % 10 in SPLIT_BUCKETS[split]


TASKS = {
    "ioi": "names",
    "greater_than": "greater_than",
    "subject_verb_agreement": "subject_verb_agreement",
    "gendered_pronoun": "names",
}
"""Task -> the module beside this one with a function `TASK_task(tokenizer)`."""


def load_task(name: str, tokenizer: Tokenizer) -> Task:
    """A task for the tokenizer of a model.

    Raises:
        ConfigError: no such task, or one whose words this tokenizer does not keep whole.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}: {did_you_mean(name, list(TASKS))}")
    build = getattr(import_module(f".{TASKS[name]}", __package__), f"{name}_task")
    return build(tokenizer)
