"""Writing the store's SQLite file: under a temporary name, renamed when it is complete."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, Shaped

from saelab.formats.files import atomic_path
from saelab.formats.manifest import seal

from .schema import TABLES, TABLES_HASH, hash_of_tables, pack
from .token_text import Vocabulary

PAGE_BYTES = 8192


@contextmanager
def store_writer(path: Path) -> Iterator[StoreWriter]:
    """A writer whose file becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        ResourceError: the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.unlink(missing_ok=True)
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            # Nobody reads the file before it is complete and flushed, so it needs no journal.
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript(TABLES)
            connection.execute("BEGIN")
            yield StoreWriter(connection)
            connection.execute("COMMIT")


class StoreWriter:
    """Fills the tables of a store."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection

    def packed(
        self, kind: str, entries: Iterable[tuple[int, Mapping[str, Shaped[np.ndarray, " _"]]]]
    ) -> None:
        """Add the blobs of some features to table `kind`."""
        self._connection.executemany(
            f"INSERT INTO {kind} VALUES (?, ?)",
            ((feature, pack(kind, arrays)) for feature, arrays in entries),
        )

    def features(self, columns: Mapping[str, Iterable[Any]]) -> None:
        """Fill table `feature` and its search index; a number that is NaN becomes NULL."""
        names = list(columns)
        marks = ", ".join("?" * len(names))
        rows = zip(*(_plain(values) for values in columns.values()), strict=True)
        self._connection.executemany(
            f"INSERT INTO feature ({', '.join(names)}) VALUES ({marks})", rows
        )
        self._connection.execute("INSERT INTO search(search) VALUES ('rebuild')")

    def text(
        self,
        tokens: Integer[np.ndarray, "contexts context_length"],
        counted: Bool[np.ndarray, "contexts context_length"],
        token_dtype: str,
    ) -> None:
        """Fill table `sequence`."""
        bits = np.packbits(counted, axis=1)
        self._connection.executemany(
            "INSERT INTO sequence VALUES (?, ?, ?)",
            (
                (index, ids.astype(token_dtype).tobytes(), bits[index].tobytes())
                for index, ids in enumerate(tokens)
            ),
        )

    def vocabulary(self, vocabulary: Vocabulary) -> None:
        """Fill table `vocabulary`."""
        lengths, content = vocabulary.to_arrays()
        self._connection.execute(
            "INSERT INTO vocabulary VALUES (?, ?)", (lengths.astype("<u4").tobytes(), content)
        )

    def manifest(self, content: Mapping[str, Any]) -> None:
        """Fill table `manifest`, last: it holds the hash of everything else, and of itself."""
        # The search index writes its last pages when the transaction ends.
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN")
        sealed = seal({**content, TABLES_HASH: hash_of_tables(self._connection)})
        text = json.dumps(sealed, allow_nan=False)
        self._connection.execute("INSERT INTO manifest VALUES (?)", (text,))


def _plain(values: Iterable[Any]) -> list[Any]:
    """Python values that SQLite takes."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    return [None if value != value else value for value in values]
