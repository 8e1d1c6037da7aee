"""Labels that a user gives for rows: a class, a sentence, the path of an image."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saelab.errors import ConfigError, did_you_mean, first_line

SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")
USUAL_COLUMN = "label"


def read_labels(path: Path, column: str | None, n_contexts: int, n_positions: int) -> list[str]:
    """One label for each row, in the order of the files that the rows are of.

    Args:
        path: a line, a CSV row, a JSON value or a parquet row for each row, or for each context.
        column: which column or field; None: `label`, or the only one.
        n_contexts: contexts in the files.
        n_positions: rows of each; 1 where rows are no contexts.

    Raises:
        ConfigError: no such file or column, not readable, or another number of labels.
    """
    readers = {".txt": _lines, ".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
    if not path.is_file() or path.suffix.lower() not in readers:
        state = "is no file of labels" if path.exists() else "does not exist"
        raise ConfigError(f"labels: {path} {state}: expected a {', '.join(SUFFIXES)} file")
    try:
        labels = list(readers[path.suffix.lower()](path, column))
    except ConfigError:
        raise
    except Exception as error:  # Each format's library has errors of its own.
        raise ConfigError(f"labels: {path} cannot be read ({first_line(error)[:200]})") from None
    if len(labels) == n_contexts * n_positions:
        return labels
    if len(labels) == n_contexts:
        return [f"{label} · position {at}" for label in labels for at in range(n_positions)]
    either = "" if n_positions == 1 else f", or {n_contexts * n_positions:,}, one for each position"
    raise ConfigError(
        f"labels: {path} has {len(labels):,} labels; the activations have {n_contexts:,} "
        f"{'rows' if n_positions == 1 else 'contexts'}: one label for each was expected{either}"
    )


def _lines(path: Path, column: str | None) -> Iterator[str]:
    if column is not None:
        raise ConfigError(f"label_column: {path} has lines and no columns: leave it out")
    with path.open(encoding="utf-8") as handle:
        yield from (line.rstrip("\r\n") for line in handle)


def _csv(path: Path, column: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        rows = csv.DictReader(handle)
        name = _chosen(path, list(rows.fieldnames or ()), column)
        for number, row in enumerate(rows):
            if row[name] is None:
                raise ConfigError(f"labels: row {number} of {path} has no {name!r}")
            yield row[name]


def _json_lines(path: Path, column: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                value: Any = json.loads(line)
            except (ValueError, RecursionError):
                raise ConfigError(f"labels: line {number} of {path} is not JSON") from None
            if isinstance(value, dict):
                name = _chosen(path, list(value), column)
                value = value[name]
            if isinstance(value, dict | list) or value is None:
                raise ConfigError(
                    f"labels: line {number} of {path} holds {str(value)[:60]!r}: expected text or "
                    "a number"
                )
            yield str(value)


def _parquet(path: Path, column: str | None) -> Iterator[str]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    name = _chosen(path, file.schema_arrow.names, column)
    row = 0
    for batch in file.iter_batches(columns=[name]):
        for value in batch.column(0).to_pylist():
            if value is None or isinstance(value, dict | list | bytes):
                raise ConfigError(f"labels: row {row} of {path} holds no text or number")
            yield str(value)
            row += 1


def _chosen(path: Path, names: list[str], column: str | None) -> str:
    if column is None and len(names) == 1:
        return names[0]
    wanted = USUAL_COLUMN if column is None else column
    if wanted in names:
        return wanted
    if column is None:
        raise ConfigError(
            f"labels: {path} has the columns {', '.join(names)[:200]}: name one with --label-column"
        )
    raise ConfigError(f"label_column: {path} has no {column!r}; {did_you_mean(column, names)}")
