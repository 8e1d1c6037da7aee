"""Documents out of local files: plain text, JSONL and parquet, in a seeded order.

Memory stays bounded whatever the size: text and JSONL files are indexed by byte offsets and read
one document at a time in shuffled order; parquet files are read one row group at a time, row
groups shuffled and documents shuffled within each.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import TextError, did_you_mean
from saelab.formats.files import sha256_of

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)
SUFFIXES = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, *PARQUET_SUFFIXES)
SEPARATOR_LINE = b"<|endoftext|>"
LONGEST_DOCUMENT = 1 << 20
"""Bytes after which a text file's document ends at the next line end."""


@dataclass(frozen=True)
class Document:
    """One text, and what it is called where it came from."""

    id: str
    text: str


def shuffled(count: int, seed: int) -> list[int]:
    """0 … count-1 in an order that depends on the seed alone.

    Sorting by `random()` because its sequence is the one thing that Python promises to keep.
    """
    source = random.Random(seed)
    keys = array("d", (source.random() for _ in range(count)))
    return sorted(range(count), key=keys.__getitem__)


def text_files(path: Path) -> list[Path]:
    """The files to read: the file itself, or every known file below a folder, sorted.

    Raises:
        TextError: no such path, a file of unknown type, or a folder without a known file.
    """
    kinds = ", ".join(SUFFIXES)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise TextError(f"text file {path} has an unknown type: expected one of {kinds}")
        if path.stat().st_size == 0:
            raise TextError(f"text file {path} is empty")
        return [path]
    if not path.is_dir():
        raise TextError(f"text source {path} does not exist")
    files = [
        file
        for file in sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix())
        if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    full = [file for file in files if file.stat().st_size > 0]
    if not full:
        found = f"{len(files)} empty ones" if files else "none"
        raise TextError(f"no text found in folder {path}: expected files {kinds}, found {found}")
    if len(full) < len(files):
        logger.warning("%s: %d empty files are left out", path, len(files) - len(full))
    return full


def read_files(files: Sequence[Path], text_field: str, seed: int) -> Iterator[Document]:
    """Every document of the files, shuffled under the seed.

    Raises:
        TextError: a file that cannot be read, or a record without the text field.
    """
    spans = _Spans()
    units: list[tuple[int, int]] = []  # (file, row group) of parquet files
    for index, file in enumerate(files):
        suffix = file.suffix.lower()
        if suffix in PARQUET_SUFFIXES:
            units += [(index, group) for group in range(_row_groups(file, text_field))]
        else:
            spans.add_file(index, file, whole_lines=suffix in JSONL_SUFFIXES)
    for position in shuffled(len(spans) + len(units), seed):
        if position < len(spans):
            index, start, stop = spans[position]
            document = _read_span(files[index], start, stop, text_field)
            if document is not None:
                yield document
        else:
            index, group = units[position - len(spans)]
            yield from _read_row_group(files[index], group, text_field, seed + position)


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over the files' content, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()


def text_of(record: dict[str, Any], text_field: str, where: str) -> str | None:
    """The text of a record; None where the field is null.

    Raises:
        TextError: the field is missing (the message names those there are) or is no text.
    """
    if text_field not in record:
        raise TextError(
            f"{where} has no field {text_field!r}: {did_you_mean(text_field, record)}; "
            "choose one with text_field"
        )
    text = record[text_field]
    if text is not None and not isinstance(text, str):
        raise TextError(f"field {text_field!r} of {where} is {type(text).__name__}, expected text")
    return text


class _Spans:
    """Byte ranges of documents in files, 24 bytes each."""

    def __init__(self) -> None:
        self._file, self._start, self._stop = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, position: int) -> tuple[int, int, int]:
        return self._file[position], self._start[position], self._stop[position]

    def add_file(self, index: int, file: Path, *, whole_lines: bool) -> None:
        """Index a JSONL file (one document a line) or a text file (see `text.py`)."""
        start = offset = 0
        with file.open("rb") as handle:
            for line in handle:
                end = offset + len(line)
                if whole_lines:
                    self._add(index, offset, end)
                elif line.strip() == SEPARATOR_LINE:
                    self._add(index, start, offset)
                    start = end
                elif end - start > LONGEST_DOCUMENT:
                    self._add(index, start, end)
                    start = end
                offset = end
        if not whole_lines:
            self._add(index, start, offset)

    def _add(self, index: int, start: int, stop: int) -> None:
        if stop > start:
            self._file.append(index)
            self._start.append(start)
            self._stop.append(stop)


def _read_span(file: Path, start: int, stop: int, text_field: str) -> Document | None:
    """Read one document of a text or JSONL file; None where it is blank or null."""
    with file.open("rb") as handle:
        handle.seek(start)
        content = handle.read(stop - start)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"text file {file} is not UTF-8 at byte {start + error.start}: convert it first"
        ) from None
    if not text.strip():
        return None
    if file.suffix.lower() in JSONL_SUFFIXES:
        where = f"{file}, byte {start}"
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise TextError(
                f"{_line_of(file, start)} is not JSON ({error.msg}): expected one object a line"
            ) from None
        if not isinstance(record, dict):
            raise TextError(f"{_line_of(file, start)} is not a JSON object")
        if text_field not in record:
            where = _line_of(file, start)
        found = text_of(record, text_field, where)
        if found is None or not found.strip():
            return None
        text = found
    return Document(id=f"{file.name}@{start}", text=text)


def _line_of(file: Path, offset: int) -> str:
    """Name a byte offset as a line, for a message."""
    with file.open("rb") as handle:
        number = handle.read(offset).count(b"\n") + 1
    return f"{file}, line {number}"


def _row_groups(file: Path, text_field: str) -> int:
    """How many row groups a parquet file has, after checking that its text can be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as reader:
            schema, groups = reader.schema_arrow, reader.num_row_groups
    except (pyarrow.ArrowException, OSError) as error:
        raise TextError(
            f"parquet file {file} cannot be read ({str(error).splitlines()[0][:120]}): "
            "it is damaged or of another type"
        ) from None
    if text_field not in schema.names:
        text_of(dict.fromkeys(schema.names), text_field, str(file))
    kind = schema.field(text_field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise TextError(f"column {text_field!r} of {file} holds {kind}, expected text")
    return groups


def _read_row_group(file: Path, group: int, text_field: str, seed: int) -> Iterator[Document]:
    """The documents of one row group, shuffled."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as reader:
            column = reader.read_row_group(group, columns=[text_field]).column(0)
    except (pyarrow.ArrowException, OSError) as error:
        raise TextError(
            f"row group {group} of parquet file {file} cannot be read "
            f"({str(error).splitlines()[0][:120]}): the file is damaged"
        ) from None
    for row in shuffled(len(column), seed):
        text = column[row].as_py()
        if text is not None and text.strip():
            yield Document(id=f"{file.name}:{group}:{row}", text=text)
