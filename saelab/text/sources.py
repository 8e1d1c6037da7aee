"""Documents out of local files.

Memory stays bounded whatever the size. Plain text and JSONL files are indexed by byte offsets and
read one document at a time in shuffled order; parquet files are read one row group at a time, row
groups shuffled and documents shuffled within each. What can only be read from its beginning (a
compressed file, CSV, Arrow) is read in blocks at its place among them, documents shuffled within a
block; a `.json` file that is one array is read whole.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import random
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from saelab.errors import TextError, first_line
from saelab.formats.files import sha256_of

from .listing import (
    ARROW_SUFFIXES,
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    file_kind,
)
from .records import DEFAULT_FIELD, Document, clean, document_of, fields_of

logger = logging.getLogger(__name__)

SEPARATOR_LINE = b"<|endoftext|>"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONGEST_DOCUMENT = 1 << 20
"""Bytes after which a text file's document ends at the next line end."""
BLOCK_CHARACTERS = 1 << 24
"""Characters of a block of what is read from its beginning."""


def shuffled(count: int, seed: int) -> list[int]:
    """0 … count-1 in an order that depends on the seed alone.

    Sorting by `random()` because its sequence is the one thing that Python promises to keep.
    """
    source = random.Random(seed)
    keys = array("d", (source.random() for _ in range(count)))
    return sorted(range(count), key=keys.__getitem__)


def read_files(
    files: Sequence[Path], text_field: str, seed: int, counts: Counter[str]
) -> Iterator[Document]:
    """Every document of the files, shuffled under the seed.

    Args:
        files: what to read.
        text_field: as in `TextConfig`.
        seed: of the order.
        counts: gets what was blank and what was replaced, while it is read.

    Raises:
        TextError: a file that cannot be read, or a record without the text field.
    """
    spans = array("q")  # file, first byte, end of each document: 24 bytes a document
    units: list[tuple[int, int]] = []  # (file, row group) of parquet files, (file, 0) of others
    for index, file in enumerate(files):
        suffix, compression = file_kind(file)
        if suffix in PARQUET_SUFFIXES:
            units += [(index, group) for group in range(_row_groups(file, text_field))]
        elif compression is None and suffix in TEXT_SUFFIXES + JSONL_SUFFIXES:
            before = len(spans)
            for start, stop in _spans_of(file, whole_lines=suffix in JSONL_SUFFIXES):
                if start < stop:
                    spans.extend((index, start, stop))
            if len(spans) > before:
                # A file of another kind is found out before what lies ahead of it is read.
                places = zip(spans[before + 1 :: 3], spans[before + 2 :: 3], strict=True)
                any(_read_span(file, *span, text_field, Counter()) for span in places)
        else:
            units.append((index, 0))
            if suffix != ".json":  # which is read whole
                next(_documents_of(file, text_field, Counter()), None)
    n_spans = len(spans) // 3
    for position in shuffled(n_spans + len(units), seed):
        if position < n_spans:
            index, start, stop = spans[3 * position : 3 * position + 3]
            document = _read_span(files[index], start, stop, text_field, counts)
            if document is not None:
                yield document
            continue
        index, group = units[position - n_spans]
        if file_kind(files[index])[0] in PARQUET_SUFFIXES:
            yield from _read_row_group(files[index], group, text_field, seed + position, counts)
        else:
            yield from _read_blocks(files[index], text_field, seed + position, counts)


def read_records(file: Path) -> Iterator[Mapping[str, Any]]:
    """Every record of a CSV, JSON, JSONL or parquet file, in its order.

    Raises:
        TextError: the file is missing, of another type, or cannot be read.
    """
    suffix, _ = file_kind(file)
    if suffix in PARQUET_SUFFIXES:
        with _parquet(file, f"parquet file {file}") as reader:
            for batch in reader.iter_batches():
                yield from batch.to_pylist()
        return
    if suffix not in RECORD_SUFFIXES or not file.is_file():
        raise TextError(
            f"{file} is no file of records: expected one of "
            f"{', '.join((*RECORD_SUFFIXES, *PARQUET_SUFFIXES))}"
        )
    for piece in _pieces_of(file, DEFAULT_FIELD):
        if not isinstance(piece.content, bytes):
            yield piece.content
        elif piece.content.strip():
            text = piece.content.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")
            yield _json_object(text, partial(_line_of, file, piece.number))


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 over the files' content, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()


def _spans_of(file: Path, *, whole_lines: bool) -> Iterator[tuple[int, int]]:
    """First byte and end of the documents of a JSONL file (a line each) or of a text file."""
    with file.open("rb") as handle:
        yield from _cut(handle, whole_lines=whole_lines)


def _cut(lines: Iterable[bytes], *, whole_lines: bool) -> Iterator[tuple[int, int]]:
    start = end = 0
    for line in lines:
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


def _read_span(
    file: Path, start: int, stop: int, text_field: str, counts: Counter[str]
) -> Document | None:
    """Read one document of a text or JSONL file; None where it is blank or null."""
    with file.open("rb") as handle:
        handle.seek(start)
        content = handle.read(stop - start)
    return _document_in(content, file, start, text_field, counts)


def _document_in(
    content: bytes, file: Path, start: int, text_field: str, counts: Counter[str]
) -> Document | None:
    """The document in a piece of a text or JSONL file that begins at byte `start`."""
    if start == 0:
        content = content.removeprefix(BYTE_ORDER_MARK)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"text file {file} is not UTF-8 at byte {start + error.start}: convert it first"
        ) from None
    name = f"{file.name}@{start}"
    if not text.strip():
        counts["blank"] += 1
        return None
    if file_kind(file)[0] in TEXT_SUFFIXES:
        return Document(name, clean(text, counts))

    def where() -> str:
        return _line_of(file, start)

    return document_of(_json_object(text, where), text_field, name, where, counts)


def _json_object(text: str, where: Callable[[], str]) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
        raise TextError(f"{where()} is not JSON ({reason}): expected one object a line") from None
    if not isinstance(record, dict):
        raise TextError(f"{where()} is not a JSON object")
    return record


def _line_of(file: Path, offset: int) -> str:
    with _opened(file) as handle:
        number = handle.read(offset).count(b"\n") + 1
    return f"{file}, line {number}"


# What is read from its beginning.


class _Piece(NamedTuple):
    """A document of a file that is read from its beginning."""

    number: int
    """Its place in the file, or its first byte in what the file holds uncompressed."""
    content: bytes | Mapping[str, Any]
    """What `_document_in` reads, or a record."""


def _read_blocks(
    file: Path, text_field: str, seed: int, counts: Counter[str]
) -> Iterator[Document]:
    """The documents of a file that is read from its beginning, shuffled within each block."""
    block: list[Document] = []
    number = characters = 0
    for document in _documents_of(file, text_field, counts):
        block.append(document)
        characters += len(document.text)
        if characters >= BLOCK_CHARACTERS:
            yield from (block[index] for index in shuffled(len(block), seed + number))
            block, characters, number = [], 0, number + 1
    yield from (block[index] for index in shuffled(len(block), seed + number))


def _documents_of(file: Path, text_field: str, counts: Counter[str]) -> Iterator[Document]:
    """The documents of a file that is read from its beginning, in order."""
    for piece in _pieces_of(file, text_field):
        document = _document_of_piece(piece, file, text_field, counts)
        if document is not None:
            yield document


def _document_of_piece(
    piece: _Piece, file: Path, text_field: str, counts: Counter[str]
) -> Document | None:
    if isinstance(piece.content, bytes):
        return _document_in(piece.content, file, piece.number, text_field, counts)
    name = f"{file.name}:{piece.number}"
    return document_of(
        piece.content, text_field, name, lambda: f"{file}, record {piece.number + 1}", counts
    )


def _pieces_of(file: Path, text_field: str) -> Iterator[_Piece]:
    """Every document or record of a file, in order.

    Raises:
        TextError: the file is truncated, damaged or of another type.
    """
    suffix, _ = file_kind(file)
    try:
        if suffix in ARROW_SUFFIXES:
            yield from _arrow_records(file, text_field)
            return
        with _opened(file) as handle:
            if suffix in TEXT_SUFFIXES + JSONL_SUFFIXES:
                yield from _byte_pieces(handle, whole_lines=suffix in JSONL_SUFFIXES)
            elif suffix == ".csv":
                yield from _csv_records(handle, file)
            else:
                yield from _json_records(handle, file)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise TextError(
            f"text file {file} cannot be read ({first_line(error)}): it is damaged or of another "
            "type"
        ) from None


@contextmanager
def _opened(file: Path) -> Iterator[io.BufferedIOBase]:
    """A file for reading bytes, uncompressed."""
    _, compression = file_kind(file)
    if compression is None:
        with file.open("rb") as handle:
            yield handle
        return
    import pyarrow

    with pyarrow.input_stream(str(file), compression=compression) as stream:
        yield io.BufferedReader(stream)  # type: ignore[arg-type]


def _byte_pieces(handle: Iterable[bytes], *, whole_lines: bool) -> Iterator[_Piece]:
    buffer = bytearray()
    offset = 0

    def kept() -> Iterator[bytes]:
        for line in handle:
            buffer.extend(line)
            yield line

    for start, stop in _cut(kept(), whole_lines=whole_lines):
        if start < stop:
            yield _Piece(start, bytes(buffer[start - offset : stop - offset]))
        del buffer[: stop - offset]
        offset = stop


def _csv_records(handle: Any, file: Path) -> Iterator[_Piece]:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(handle, "utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        for number, record in enumerate(reader):
            if None in record:
                raise TextError(
                    f"{file}, line {reader.line_num} has more fields than the {len(record) - 1} of "
                    "the header"
                )
            yield _Piece(number, record)


def _json_records(handle: Any, file: Path) -> Iterator[_Piece]:
    """Records of a .json file: an array of objects, one object a line, or one object."""
    with io.TextIOWrapper(handle, "utf-8-sig") as reader:
        first = next((line for line in reader if line.strip()), "")
        try:
            one_a_line = isinstance(json.loads(first), dict)
        except (ValueError, RecursionError):
            one_a_line = False
        if one_a_line:
            lines = (line for line in chain([first], reader) if line.strip())
            for number, line in enumerate(lines):
                record_name = f"{file}, record {number + 1}"
                yield _Piece(
                    number, _json_object(line, lambda record_name=record_name: record_name)
                )
            return
        try:
            content = json.loads(first + reader.read())
        except (ValueError, RecursionError) as error:
            raise TextError(f"text file {file} is not JSON ({first_line(error)})") from None
    for number, record in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(record, dict):
            raise TextError(f"{file}, record {number + 1} is not a JSON object")
        yield _Piece(number, record)


def _arrow_records(file: Path, text_field: str) -> Iterator[_Piece]:
    import pyarrow
    from pyarrow import ipc

    try:
        with pyarrow.memory_map(str(file)) as source:
            try:
                reader = ipc.open_stream(source)
                batches: Iterable[Any] = reader
            except pyarrow.ArrowInvalid:
                source.seek(0)
                reader = ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
            fields = _checked_fields(reader.schema, text_field, file)
            number = 0
            for batch in batches:
                for record in _records_of(batch, fields, file):
                    yield _Piece(number, record)
                    number += 1
    except pyarrow.ArrowException as error:
        raise OSError(first_line(error)) from None


# Columns.


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
    with _parquet(file, f"parquet file {file}") as reader:
        _checked_fields(reader.schema_arrow, text_field, file)
        return reader.num_row_groups


def _read_row_group(
    file: Path, group: int, text_field: str, seed: int, counts: Counter[str]
) -> Iterator[Document]:
    with _parquet(file, f"row group {group} of parquet file {file}") as reader:
        fields = _checked_fields(reader.schema_arrow, text_field, file)
        table = reader.read_row_group(group, columns=list(fields))
    for row in shuffled(table.num_rows, seed):
        (record,) = _records_of(table.slice(row, 1), fields, file)
        document = document_of(
            record,
            text_field,
            f"{file.name}:{group}:{row}",
            lambda row=row: f"{file}, row {row} of row group {group}",
            counts,
        )
        if document is not None:
            yield document


def _checked_fields(schema: Any, text_field: str, file: Path) -> tuple[str, ...]:
    """The columns that are read, after a look at their types.

    Raises:
        TextError: they are missing, or hold neither text nor lists.
    """
    import pyarrow

    fields = fields_of(schema.names, text_field, lambda: str(file))
    for name in fields:
        kind = schema.field(name).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if not (_is_text(kind) or pyarrow.types.is_nested(kind)):
            raise TextError(f"column {name!r} of {file} holds {kind}, expected text")
    return fields


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    checks = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(types, f"is_{name}", lambda _: False)(kind) for name in checks)


def _records_of(table: Any, fields: Sequence[str], file: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow table or batch; text in a binary column is UTF-8.

    Raises:
        TextError: it is not.
    """
    columns = [table.column(name) for name in fields]
    for row in range(table.num_rows):
        try:
            values = [column[row].as_py() for column in columns]
            yield {
                name: value.decode("utf-8") if isinstance(value, bytes) else value
                for name, value in zip(fields, values, strict=True)
            }
        except UnicodeDecodeError:
            raise TextError(f"a text of {file} is not UTF-8: convert it first") from None
