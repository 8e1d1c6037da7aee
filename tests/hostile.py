"""Content that nobody's writer writes: seeded mutations, and values that break careless readers."""

from __future__ import annotations

import copy
import json
import random
from typing import Any


def nested(levels: int) -> Any:
    inner: Any = []
    for _ in range(levels):
        inner = [inner]
    return inner


VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**20,
    -(10**30),
    10**299,
    float("inf"),
    float("nan"),
    "",
    "x" * 5_000,
    "\ud800",
    "../../etc/passwd",
    "a\x00b",
    "10",
    [],
    {},
    [[]],
    [None, "x", 3],
    {"a": {"b": 1}},
    nested(90),
)


def places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside JSON."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content[:5]))
    found = [(*above, key) for key, _ in pairs]
    for key, inner in pairs:
        found += places(inner, (*above, key))
    return found


def mutated(content: Any, chance: random.Random) -> Any:
    """JSON with one or two of its values replaced, taken away or renamed."""
    content = copy.deepcopy(content)
    for _ in range(chance.choice((1, 1, 2))):
        every = places(content)
        if not every:
            return content
        *way, last = chance.choice(every)
        owner = content
        for key in way:
            owner = owner[key]
        action = chance.random()
        if action < 0.12:
            del owner[last]
        elif action < 0.18 and isinstance(owner, dict):
            owner["x" * chance.choice((1, 3_000))] = owner.pop(last)
        else:
            owner[last] = copy.deepcopy(chance.choice(VALUES))
    return content


def json_text(content: Any) -> bytes:
    return json.dumps(content).encode()


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bytes with a few changed, cut, doubled or put in."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out) + 1)
        action = chance.random()
        if action < 0.5 and at < len(out):
            out[at] = chance.randrange(256)
        elif action < 0.7:
            del out[at : at + chance.randint(1, 40)]
        elif action < 0.85:
            out[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
        else:
            del out[at:]
        if not out:
            break
    return bytes(out)


BAD_JSON = (
    b"[" * 100_000,
    b'{"kind":' * 50_000,
    b'{"a": ' + b"9" * 5_000 + b"}",
    b'{"a": NaN, "b": Infinity, "c": 1e999}',
    b'{"kind": "\xff\xfe"}',
    b"\xff\xfe\x00\x01",
    b"\x80\x04\x95pickle",
    b'{"a": "\\ud800"}',
    b"",
    b" ",
    b"null",
    b"3",
    b'"text"',
    b"{}",
    b"[]",
    b'{"a": 1',
)
