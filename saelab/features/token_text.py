"""Token ids as text that can be shown, whatever the script.

Tokens are bytes, and one character may take several of them. A token whose bytes are whole
characters is a piece by itself; in a run of tokens that are not, as many are merged into one
piece as it takes to reach the end of a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

import numpy as np
from jaxtyping import Integer


@dataclass(frozen=True)
class Pieces:
    """A stretch of tokens as pieces."""

    texts: tuple[str, ...]
    """Text of each piece."""
    starts: tuple[int, ...]
    """Index of each piece's first token; one entry more, the number of tokens."""


class Vocabulary:
    """The bytes of every token, and what they show as."""

    def __init__(self, token_bytes: Sequence[bytes]):
        self._bytes = list(token_bytes)
        self._texts = [_whole(content) for content in self._bytes]

    @staticmethod
    def from_arrays(lengths: Integer[np.ndarray, " tokens"], content: bytes) -> Vocabulary:
        """The vocabulary from each token's number of bytes, and all bytes in order."""
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        starts = [0, *ends[:-1]]
        return Vocabulary(
            [content[start:end] for start, end in zip(starts, ends, strict=True)] if ends else []
        )

    def to_arrays(self) -> tuple[Integer[np.ndarray, " tokens"], bytes]:
        """What `from_arrays` takes."""
        lengths = np.array([len(content) for content in self._bytes], dtype=np.uint32)
        return lengths, b"".join(self._bytes)

    def __len__(self) -> int:
        return len(self._bytes)

    def text(self, token_id: int) -> str:
        """One token's text; bytes that are no whole character show as "�"."""
        if not 0 <= token_id < len(self._bytes):
            return f"[token {token_id}]"
        whole = self._texts[token_id]
        return self._bytes[token_id].decode("utf-8", "replace") if whole is None else whole

    def pieces(self, token_ids: Sequence[int]) -> Pieces:
        """A stretch of tokens, cut into pieces."""
        try:
            whole = list(map(self._texts.__getitem__, token_ids))
        except IndexError:
            whole = [self.text(i) if i >= len(self._texts) else self._texts[i] for i in token_ids]
        texts: list[str] = [text for text in whole if text is not None]
        if len(texts) == len(whole):
            return Pieces(tuple(texts), tuple(range(len(whole) + 1)))
        texts, starts, index = [], [], 0
        while index < len(whole):
            starts.append(index)
            text = whole[index]
            taken = 1
            if text is None:
                fragments = takewhile(lambda i: whole[i] is None, range(index, len(whole)))
                taken, text = _first_piece([self._bytes[token_ids[i]] for i in fragments])
            texts.append(text)
            index += taken
        return Pieces(tuple(texts), (*starts, len(whole)))

    def is_fragment(self, token_id: int) -> bool:
        """Whether a token's bytes are not whole characters."""
        return 0 <= token_id < len(self._texts) and self._texts[token_id] is None


def _first_piece(fragments: list[bytes]) -> tuple[int, str]:
    """How many fragments the first piece takes, and its text."""
    for taken, joined in enumerate(accumulate(fragments), start=1):
        whole = _whole(joined)
        if whole is not None:
            return taken, whole
        if not _may_continue(joined):
            break
    return 1, fragments[0].decode("utf-8", "replace")


def _whole(content: bytes) -> str | None:
    """The text of bytes that are whole characters; None for others."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _may_continue(content: bytes) -> bool:
    """Whether more bytes could complete these to whole characters."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True
