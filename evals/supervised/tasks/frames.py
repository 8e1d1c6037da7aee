"""Sentences with slots, written as tokens; which prompts belong to which split.

A frame such as "Then, {first} and {second} went home" is cut at its slots. Its fixed pieces and the
words in the slots are tokenised one by one, once each, so a prompt costs no tokenizer call and the
place of every slot is known.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from saelab.errors import ConfigError

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
        places: dict[str, list[int]] = {}
        for text, slot in self._cut(frame):
            tokens += self.piece(text if slot is None else text + words[slot])
            if slot is not None:
                places.setdefault(slot, []).append(len(tokens) - 1)
        return tuple(tokens), places

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
