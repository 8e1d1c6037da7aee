"""Documents as tokens, and which of them are of a role that counts.

A conversation goes through the tokenizer's own template. Its control tokens are control tokens;
one that a message spells is ordinary text, as in every text, unless the settings say otherwise.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain
from typing import Any

from saelab.errors import ModelError, TextError, first_line
from saelab.model.language_model import LanguageModel

from .config import TextConfig
from .records import Document

logger = logging.getLogger(__name__)

COUNTED, OTHER_ROLE, PADDING = 0, 1, 2
"""What a position of a context is."""
_STAND_IN = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True)
class TokenisedDocument:
    """The tokens of a document."""

    ids: list[int]
    left_out: bytes
    """For each token `COUNTED` or `OTHER_ROLE`."""
    tokenised_before: bool = False
    """Whether the tokens came as they are, and may end in a separator."""


class Tokeniser:
    """Turns documents into tokens under the settings of a text.

    Args:
        config: the text.
        model: whose tokenizer and template are used.
        counts: gets documents that spell control tokens.
    """

    def __init__(self, config: TextConfig, model: LanguageModel, counts: Counter[str]):
        self._config, self._model, self._counts = config, model, counts
        spelt = "|".join(map(re.escape, sorted(model.control_strings)))
        self._spelt = re.compile(spelt) if spelt else None

    def __call__(self, documents: Sequence[Document]) -> list[TokenisedDocument]:
        """Tokens of each document, special tokens added to none.

        Raises:
            ModelError: there is no template for a conversation, or it refuses one.
            TextError: token ids that are not the tokenizer's.
        """
        plain = [d.text for d in documents if d.messages is None and d.tokens is None]
        for text in plain:
            if self._spells_control(text) and not self._config.control_tokens:
                _warn_of_control_strings(self._config.source)
        control = {"control_tokens": True} if self._config.control_tokens else {}
        texts = iter(self._model.tokenize(plain, **control))
        return [self._one(document, texts) for document in documents]

    def _one(self, document: Document, texts: Iterator[list[int]]) -> TokenisedDocument:
        if document.messages is not None:
            return self._chat(document)
        ids = self._checked(document) if document.tokens is not None else next(texts)
        return TokenisedDocument(ids, bytes(len(ids)), document.tokens is not None)

    def _checked(self, document: Document) -> list[int]:
        assert document.tokens is not None
        size = self._model.tokenizer_size
        foreign = [token for token in document.tokens if not 0 <= token < size]
        if foreign:
            raise TextError(
                f"document {document.id} holds token id {foreign[0]}, and the tokenizer of "
                f"{self._model.name} has {size}: it was tokenised for another model"
            )
        return list(document.tokens)

    def _spells_control(self, text: str) -> bool:
        spelt = self._spelt is not None and self._spelt.search(text) is not None
        self._counts["control_strings"] += spelt
        return spelt

    def _chat(self, document: Document) -> TokenisedDocument:
        assert document.messages is not None
        try:
            text = _rendered(self._model, document.messages)
        except ModelError as error:
            raise ModelError(f"{error}; document {document.id}") from error
        contents = "\n".join(message["content"] for message in document.messages)
        escaped = self._spells_control(contents) and not self._config.control_tokens
        if escaped:
            _warn_of_control_strings(self._config.source)
        if not self._config.roles and not escaped:
            (ids,) = self._model.tokenize([text], control_tokens=True)
            return TokenisedDocument(ids, bytes(len(ids)))
        pieces = self._pieces(document, text)
        if escaped:
            # Apart from the template, so that a message can spell no control token.
            parts = [
                self._model.tokenize([piece.text], control_tokens=piece.of_template)[0]
                for piece in pieces
            ]
            states = [bytes([p.state]) * len(ids) for p, ids in zip(pieces, parts, strict=True)]
            return TokenisedDocument([*chain.from_iterable(parts)], b"".join(states))
        ids, starts = _with_starts(self._model, text)
        ends = [*accumulate(len(piece.text) for piece in pieces[:-1])]
        states = [pieces[bisect_right(ends, start)].state for start in starts]
        return TokenisedDocument(ids, bytes(states))

    def _pieces(self, document: Document, text: str) -> list[_Piece]:
        """A rendered conversation in pieces: what the template writes, and each message's content.

        The template is asked a second time, with marks in place of the contents, and must have
        written the same around them, but for blanks at a content's ends.

        Raises:
            TextError: it did not.
        """
        messages = document.messages
        assert messages is not None
        marked = [
            {**message, "content": f"\ue000{index}\ue001"} for index, message in enumerate(messages)
        ]
        around = _STAND_IN.split(_rendered(self._model, marked))
        roles = self._config.roles
        of_template = OTHER_ROLE if roles else COUNTED
        pieces = [_Piece(around[0], of_template, True)]
        written = around[0]
        for index, after in zip(map(int, around[1::2]), around[2::2], strict=True):
            content, role = messages[index]["content"], messages[index]["role"]
            variants = (content, content.strip(), content.lstrip(), content.rstrip())
            fitting = (v for v in variants if text.startswith(written + v + after))
            content = next(fitting, None)
            if content is None:
                break
            written += content + after
            counts = not roles or role in roles
            pieces += [
                _Piece(content, COUNTED if counts else OTHER_ROLE, False),
                _Piece(after, of_template, True),
            ]
        if written != text:
            raise TextError(
                f"the chat template of {self._model.name} rewrites the messages of document "
                f"{document.id}, so their tokens cannot be told from the template's: read it "
                "without --text.roles and with --text.control-tokens, or leave that conversation "
                "out"
            )
        return pieces


@cache
def _warn_of_control_strings(source: str) -> None:
    """Say once of a source that it spells control tokens."""
    logger.warning(
        "%s holds text that spells control tokens; it is read as ordinary text, and "
        "--text.control-tokens reads it as the tokens that it spells",
        source,
    )


@dataclass(frozen=True)
class _Piece:
    """A part of a rendered conversation."""

    text: str
    state: int
    """`COUNTED` or `OTHER_ROLE`."""
    of_template: bool
    """Whether the template wrote it; else it is a message's content."""


def _with_starts(model: LanguageModel, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text with its control tokens, and where each token begins in it."""
    if not model.tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {model.name} does not say where its tokens begin in the text, so "
            "roles cannot be told apart: use one with a tokenizer.json"
        )
    off = dict.fromkeys(("add_special_tokens", "return_attention_mask", "verbose"), False)
    encoded = model.tokenizer(text, split_special_tokens=False, return_offsets_mapping=True, **off)
    return list(encoded["input_ids"]), [start for start, _ in encoded["offset_mapping"]]


def _rendered(model: LanguageModel, messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as the tokenizer's own template writes it.

    Raises:
        ModelError: the tokenizer has no template, or its template refuses the conversation.
    """
    if not model.tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {model.name} has no chat template, so conversations cannot be "
            "read with it: use the model's instruct version, or text in place of conversations"
        )
    try:
        return model.tokenizer.apply_chat_template([*map(dict, messages)], tokenize=False)
    except Exception as error:
        raise ModelError(
            f"the chat template of {model.name} refuses a conversation ({first_line(error)})"
        ) from error
