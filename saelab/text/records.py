"""What a record says: a text, a conversation, or tokens that were tokenised before.

The field that `text_field` names decides by what it holds: text, a list of messages, or a list of
token ids. Two fields ("prompt,response") are one exchange between user and assistant. A record
without a field "text", where none other was asked for, is read by the usual fields of the others.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from saelab.errors import TextError, did_you_mean

DEFAULT_FIELD = "text"
USUAL_FIELDS = (
    ("messages",),
    ("conversations",),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("input_ids",),
)
"""Fields tried in turn where a record has no "text" and no other field was asked for."""
ATTENTION_MASK = "attention_mask"
"""Beside token ids: 0 where they are padding."""
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """A text, a conversation or tokens, and what it is called where it came from."""

    id: str
    text: str
    """The text; the JSON of a conversation or of tokens, by which they are split."""
    messages: tuple[dict[str, Any], ...] | None = None
    """Of a conversation: what its template takes, role and content among it."""
    tokens: tuple[int, ...] | None = None
    """Token ids, where they were there already."""


def fields_of(names: Iterable[str], text_field: str, where: Callable[[], str]) -> tuple[str, ...]:
    """The fields of a record that are read.

    Raises:
        TextError: it does not have them; the message names those it has.
    """
    known = list(names)
    wanted = tuple(name.strip() for name in text_field.split(","))
    candidates = [(text_field,), wanted]
    if text_field == DEFAULT_FIELD:
        candidates += USUAL_FIELDS
    for fields in candidates:
        if set(fields) <= set(known):
            mask = fields == ("input_ids",) and ATTENTION_MASK in known
            return (*fields, ATTENTION_MASK) if mask else fields
    missing = next(name for name in wanted if name not in known)
    raise TextError(
        f"{where()} has no field {missing!r}: {did_you_mean(missing, known)}; "
        "choose one with text_field"
    )


def document_of(
    record: Mapping[str, Any],
    text_field: str,
    name: str,
    where: Callable[[], str],
    counts: Counter[str],
) -> Document | None:
    """The document of a record; None where there is nothing in it.

    Args:
        record: field to value.
        text_field: as in `TextConfig`.
        name: id of the document.
        where: says where the record is, for messages.
        counts: gets what was blank and what was replaced.

    Raises:
        TextError: the field is missing or holds neither text nor messages nor token ids.
    """
    fields = fields_of(record, text_field, where)
    values = [record[field] for field in fields]
    if any(value is None for value in values):
        document = None
    elif len(fields) == 2 and fields[1] != ATTENTION_MASK:
        document = _conversation(name, _exchange(fields, values, where), where, counts)
    elif isinstance(values[0], str):
        document = Document(name, clean(values[0], counts))
    elif _is_list_of(values[0], dict):
        document = _conversation(name, values[0], where, counts)
    elif _is_list_of(values[0], int):
        document = _tokens(name, values, where)
    else:
        raise TextError(
            f"field {fields[0]!r} of {where()} is {type(values[0]).__name__}, expected text, a "
            "list of messages, or a list of token ids"
        )
    if document is None or not document.text.strip():
        counts["blank"] += 1
        return None
    return document


def clean(text: str, counts: Counter[str]) -> str:
    """The text with every half of a surrogate pair, which no UTF-8 can hold, as U+FFFD."""
    if text.isascii():
        return text
    text, replaced = _SURROGATE.subn("\ufffd", text)
    if replaced:
        counts["surrogates"] += replaced
    return text


def _is_list_of(value: Any, kind: type) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(
        isinstance(item, kind) and not isinstance(item, bool) for item in value
    )


def _exchange(
    fields: tuple[str, ...], values: list[Any], where: Callable[[], str]
) -> list[dict[str, Any]]:
    """Two fields as messages: texts, or lists of messages of which the second goes on."""
    messages: list[dict[str, Any]] = []
    for field, value, role in zip(fields, values, ("user", "assistant"), strict=True):
        if isinstance(value, str):
            messages.append({"role": role, "content": value})
        elif _is_list_of(value, dict):
            messages += value
        else:
            raise TextError(f"field {field!r} of {where()} is {type(value).__name__}, not text")
    return messages


def _conversation(
    name: str, messages: list[dict[str, Any]], where: Callable[[], str], counts: Counter[str]
) -> Document | None:
    """A conversation, whether its messages say role and content or from and value."""
    plain = [_message(message, where, counts) for message in messages]
    if not any(message["content"].strip() for message in plain):
        return None
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, default=str)
    return Document(name, text, messages=tuple(plain))


def _message(
    message: dict[str, Any], where: Callable[[], str], counts: Counter[str]
) -> dict[str, Any]:
    given = {key: value for key, value in message.items() if value is not None}
    role, content = given.get("role"), given.get("content")
    if role is None and "from" in given:
        role = SHAREGPT_ROLES.get(given.pop("from"), message["from"])
        content = given.pop("value", None)
    if _is_list_of(content, dict) and all(part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if content is None and "tool_calls" in given:
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise TextError(
            f"a message of {where()} has fields {', '.join(map(str, message))}: expected role and "
            "content, or from and value, both text"
        )
    return {**given, "role": role, "content": clean(content, counts)}


def _tokens(name: str, values: list[list[int]], where: Callable[[], str]) -> Document | None:
    """Token ids, without those that an attention mask beside them leaves out."""
    ids = values[0]
    for mask in values[1:]:
        if len(mask) != len(ids):
            raise TextError(f"{where()} has {len(ids)} token ids and a mask of {len(mask)}")
        ids = [token for token, attended in zip(ids, mask, strict=True) if attended]
    return Document(name, json.dumps(ids), tokens=tuple(ids)) if ids else None
