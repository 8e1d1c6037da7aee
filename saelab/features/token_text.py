"""Token ids as text that can be shown, whatever the script.

Tokens are bytes, and one character may take several of them. A token whose bytes are whole
characters is a piece of its own; in a run of tokens that are not, as many are merged into one
piece as it takes to reach the end of a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
            found = list(map(self._texts.__getitem__, token_ids))
        except IndexError:
            found = [self.text(i) if i >= len(self._texts) else self._texts[i] for i in token_ids]
        if None in found:
            return self._merged(token_ids, found)
        return Pieces(
            tuple(text for text in found if text is not None), tuple(range(len(found) + 1))
        )

    def is_fragment(self, token_id: int) -> bool:
        """Whether a token's bytes are not whole characters."""
        return 0 <= token_id < len(self._texts) and self._texts[token_id] is None

    def _merged(self, token_ids: Sequence[int], found: Sequence[str | None]) -> Pieces:
        texts: list[str] = []
        starts: list[int] = []
        index = 0
        while index < len(found):
            text = found[index]
            starts.append(index)
            if text is not None:
                texts.append(text)
                index += 1
                continue
            run = index
            while run < len(found) and found[run] is None:
                run += 1
            taken, joined = self._first_piece(
                [self._bytes[token_ids[i]] for i in range(index, run)]
            )
            texts.append(joined)
            index += taken
        return Pieces(tuple(texts), (*starts, len(found)))

    @staticmethod
    def _first_piece(fragments: list[bytes]) -> tuple[int, str]:
        """How many fragments the first piece takes, and its text."""
        joined = b""
        for taken, fragment in enumerate(fragments, start=1):
            joined += fragment
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
