"""One small damage to one file, as disks, copies and careless editors make them."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

HOWS = ("bit", "block", "cut", "append", "number", "swap", "empty", "missing")
"""What can be done to a file; a bit and a number stand for most of it."""
WEIGHTS = (30, 8, 14, 10, 22, 6, 5, 5)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
BLOCK = 512


def choose(chance: random.Random, without: Sequence[str] = ()) -> str:
    """How to damage a file."""
    weights = [0 if how in without else weight for how, weight in zip(HOWS, WEIGHTS, strict=True)]
    return chance.choices(HOWS, weights)[0]


def damage(path: Path, how: str, chance: random.Random, other: Path | None = None) -> str:
    """Damage a file. It is written as a new one, so that hard links keep the old content.

    Args:
        path: the file.
        how: one of `HOWS`; what cannot be done to this file becomes a flipped bit.
        chance: decides where.
        other: file that takes its place in a swap.

    Returns:
        What was done, in words.
    """
    content = path.read_bytes()
    path.unlink()
    if how == "missing":
        return "missing"
    if how == "number":
        words = _edit_number(path, content, chance)
        if words:
            return words
    changed, words = _changed(content, how, chance, other)
    path.write_bytes(changed)
    return words


def _changed(
    content: bytes, how: str, chance: random.Random, other: Path | None
) -> tuple[bytes, str]:
    size = len(content)
    if how == "empty" or size == 0:
        return b"", "empty"
    if how == "cut":
        at = chance.randrange(size)
        return content[:at], f"cut to {at} of {size} bytes"
    if how == "append":
        more = chance.choice((b"\0" * 64, b"{}\n", chance.randbytes(chance.randint(1, 300))))
        return content + more, f"{len(more)} bytes appended"
    if how == "swap" and other is not None and other.is_file() and other.read_bytes() != content:
        return other.read_bytes(), f"replaced by {other.name} of another"
    if how == "block" and size > BLOCK:
        at = chance.randrange(size // BLOCK) * BLOCK
        part = b"\0" * len(content[at : at + BLOCK])
        return content[:at] + part + content[at + BLOCK :], f"zeros from byte {at}"
    at, bit = chance.randrange(size), chance.randrange(8)
    flipped = bytes([content[at] ^ 1 << bit])
    return content[:at] + flipped + content[at + 1 :], f"bit {bit} of byte {at} flipped"


def _edit_number(path: Path, content: bytes, chance: random.Random) -> str:
    """Put another number in place of one, in the file's own format; "" where there is none."""
    if path.suffix == ".sqlite":
        return _edit_table(path, content, chance)
    if path.suffix == ".parquet":
        return _edit_column(path, content, chance)
    if path.suffix == ".safetensors":
        start = 8 + int.from_bytes(content[:8], "little")
        at = chance.randrange(start, len(content)) if start < len(content) else 0
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
        return f"another number at byte {at}"
    found = list(_NUMBER.finditer(content))
    if not found:
        return ""
    one = chance.choice(found)
    old, new = one.group(), one.group()
    while new == old:
        new = str(chance.choice((0, 1, -1, 7, 12, 0.5, 1e6, chance.randrange(1000)))).encode()
    path.write_bytes(content[: one.start()] + new + content[one.end() :])
    return f"{old.decode()[:30]} at byte {one.start()} edited to {new.decode()}"


def _edit_table(path: Path, content: bytes, chance: random.Random) -> str:
    path.write_bytes(content)
    with closing(sqlite3.connect(path)) as connection, connection:
        names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        cells = [
            (table, column, row)
            for (table,) in connection.execute(names)
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info('{table}')")
            if kind.upper() in ("INTEGER", "REAL")
            for row in connection.execute(f'SELECT max(rowid) FROM "{table}"')
            if row[0] is not None
        ]
        if not cells:
            return "nothing"
        table, column, (last,) = chance.choice(cells)
        row = chance.randint(1, last)
        # A key that exists already cannot be taken twice: then another value.
        for more in (1, 1_000_003):
            try:
                connection.execute(
                    f'UPDATE "{table}" SET "{column}" = coalesce("{column}", 0) + {more} '
                    f"WHERE rowid = {row}"
                )
                break
            except sqlite3.Error:
                continue
    return f"{table}.{column} of row {row} edited"


def _edit_column(path: Path, content: bytes, chance: random.Random) -> str:
    import pyarrow
    from pyarrow import parquet

    path.write_bytes(content)
    table: Any = parquet.read_table(path)
    columns = [
        name
        for name, column in zip(table.column_names, table.columns, strict=True)
        if (pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type))
        and len(column)
    ]
    if not columns:
        path.unlink()
        return ""
    name = chance.choice(columns)
    values = table.column(name).to_pylist()
    row = chance.randrange(len(values))
    values[row] = 3 if values[row] != 3 else 4
    column = pyarrow.array(values, table.schema.field(name).type)
    path.unlink()
    parquet.write_table(table.set_column(table.column_names.index(name), name, column), path)
    return f"{name} of row {row} edited"
