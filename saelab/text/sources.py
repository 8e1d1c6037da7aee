"""Settings of the text, and documents out of local files: plain text, JSONL, parquet.

Memory stays bounded whatever the size: text and JSONL files are indexed by byte offsets and read
one document at a time in shuffled order; parquet files are read one row group at a time, row
groups shuffled and documents shuffled within each.

This module imports no torch, so that a command line can show the settings' help at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import ConfigError, TextError, did_you_mean, first_line
from saelab.formats.files import sha256_of

logger = logging.getLogger(__name__)

EMBEDDED_TEXT = "sotu"
TEXT_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)
SUFFIXES = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, *PARQUET_SUFFIXES)
SEPARATOR_LINE = b"<|endoftext|>"
LONGEST_DOCUMENT = 1 << 20
"""Bytes after which a text file's document ends at the next line end."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which text is read and how it is divided."""

    source: str = EMBEDDED_TEXT
    """"sotu" (embedded), a .txt/.jsonl/.parquet file, a folder of them, or a `datasets` name,
    with ":config" behind it where the dataset has several."""
    text_field: str = "text"
    """Field or column that holds the text, in JSONL, parquet and `datasets`."""
    held_out_fraction: float = 0.1
    """Fraction of the documents that training never sees."""
    seed: int = 0
    """Decides the order of documents, which are held out, and where windows begin."""
    max_tokens_per_document: int | None = None
    """Tokens taken from one document at most, as one window; None takes whole documents."""

    def __post_init__(self) -> None:
        problems = []
        if not self.source.strip():
            problems.append("text source is empty: give 'sotu', a file, a folder or a dataset name")
        if not self.text_field:
            problems.append("text_field is empty: name the field that holds the text")
        if not 0 <= self.held_out_fraction < 1:
            problems.append(
                f"held_out_fraction is {self.held_out_fraction}: expected at least 0 and below 1"
            )
        if self.max_tokens_per_document is not None and self.max_tokens_per_document < 1:
            problems.append(
                f"max_tokens_per_document is {self.max_tokens_per_document}: expected at least 1, "
                "or none for whole documents"
            )
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Document:
    """A text, and what it is called where it came from."""

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
        held = f"{len(files)} empty ones" if files else "none"
        raise TextError(f"no text found in folder {path}: expected files {kinds}, found {held}")
    if len(full) < len(files):
        logger.warning("%s: %d empty files are left out", path, len(files) - len(full))
    return full


def read_files(files: Sequence[Path], text_field: str, seed: int) -> Iterator[Document]:
    """Every document of the files, shuffled under the seed.

    Raises:
        TextError: a file that cannot be read, or a record without the text field.
    """
    spans = array("q")  # file, first byte, end of each document: 24 bytes a document
    units: list[tuple[int, int]] = []  # (file, row group) of parquet files
    for index, file in enumerate(files):
        suffix = file.suffix.lower()
        if suffix in PARQUET_SUFFIXES:
            units += [(index, group) for group in range(_row_groups(file, text_field))]
        else:
            for start, stop in _spans_of(file, whole_lines=suffix in JSONL_SUFFIXES):
                if start < stop:
                    spans.extend((index, start, stop))
    n_spans = len(spans) // 3
    for position in shuffled(n_spans + len(units), seed):
        if position < n_spans:
            index, start, stop = spans[3 * position : 3 * position + 3]
            document = _read_span(files[index], start, stop, text_field)
            if document is not None:
                yield document
        else:
            index, group = units[position - n_spans]
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


def _spans_of(file: Path, *, whole_lines: bool) -> Iterator[tuple[int, int]]:
    """First byte and end of the documents of a JSONL file (a line each) or of a text file."""
    start = end = 0
    with file.open("rb") as handle:
        for line in handle:
            line_start, end = end, end + len(line)
            if whole_lines:
                yield line_start, end
            elif line.strip() == SEPARATOR_LINE:
                yield start, line_start
                start = end
            elif end - start > LONGEST_DOCUMENT:
                yield start, end
                start = end
    if not whole_lines:
        yield start, end


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
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise TextError(
                f"{_line_of(file, start)} is not JSON ({error.msg}): expected one object a line"
            ) from None
        if not isinstance(record, dict):
            raise TextError(f"{_line_of(file, start)} is not a JSON object")
        known = text_field in record
        text = text_of(
            record, text_field, f"{file}, byte {start}" if known else _line_of(file, start)
        )
        if text is None or not text.strip():
            return None
    return Document(id=f"{file.name}@{start}", text=text)


def _line_of(file: Path, offset: int) -> str:
    with file.open("rb") as handle:
        number = handle.read(offset).count(b"\n") + 1
    return f"{file}, line {number}"


@contextmanager
def _parquet(file: Path, what: str) -> Iterator[Any]:
    """A parquet file, and its errors in words."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as reader:
            yield reader
    except (pyarrow.ArrowException, OSError) as error:
        raise TextError(
            f"{what} cannot be read ({first_line(error)}): it is damaged or of another type"
        ) from None


def _row_groups(file: Path, text_field: str) -> int:
    """How many row groups a parquet file has, after checking that its text can be read."""
    import pyarrow

    with _parquet(file, f"parquet file {file}") as reader:
        schema, groups = reader.schema_arrow, reader.num_row_groups
    if text_field not in schema.names:
        text_of(dict.fromkeys(schema.names), text_field, str(file))
    kind = schema.field(text_field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise TextError(f"column {text_field!r} of {file} holds {kind}, expected text")
    return groups


def _read_row_group(file: Path, group: int, text_field: str, seed: int) -> Iterator[Document]:
    with _parquet(file, f"row group {group} of parquet file {file}") as reader:
        column = reader.read_row_group(group, columns=[text_field]).column(0)
    for row in shuffled(len(column), seed):
        text = column[row].as_py()
        if text is not None and text.strip():
            yield Document(id=f"{file.name}:{group}:{row}", text=text)
