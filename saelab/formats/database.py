"""Opening SQLite files that others may have written.

A view or a computed column runs what its author wrote whenever it is read, for ever if so wished;
a file of saelab's holds plain tables and their indexes alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from pathlib import Path

from saelab.errors import ArtifactError

from .files import odd_content_is_damage, require_file

_COMPUTED = (2, 3)
"""What SQLite calls hidden of a column that is computed on reading or on writing."""


def open_to_read(path: Path, *, finished: bool = False) -> sqlite3.Connection:
    """Open a file for reading, in any thread.

    Args:
        path: the file.
        finished: nobody writes it any more, so a journal beside it is not its own and is not
            played into it.

    Raises:
        ArtifactError: it is missing, no plain file, no database, or runs something when read.
        sqlite3.Error: it is no database.
    """
    require_file(path, "SQLite file")
    address = f"{path.resolve().as_uri()}?mode=ro" + ("&immutable=1" if finished else "")
    connection = sqlite3.connect(address, uri=True, check_same_thread=False)
    try:
        require_plain_tables(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def require_plain_tables(
    connection: sqlite3.Connection, path: Path, only: Collection[str] | None = None
) -> None:
    """Refuse a database that runs what its author wrote when it is read.

    Args:
        connection: to the database.
        path: its file, for the message.
        only: the tables it may hold; None: any.

    Raises:
        ArtifactError: it holds views, triggers, computed columns or other tables.
        sqlite3.Error: it cannot be read.
    """
    with odd_content_is_damage(path):  # SQLite's own messages can hold bytes that are no text
        definitions = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    for kind, name, sql in definitions:
        definition = str(sql).upper()
        virtual = "VIRTUAL TABLE" in definition and "USING FTS5" not in definition
        columns = []
        if kind == "table" and not virtual:
            columns = connection.execute("SELECT hidden FROM pragma_table_xinfo(?)", (name,))
        if (
            kind not in ("table", "index")
            or virtual
            or any(hidden in _COMPUTED for (hidden,) in columns)
            or (kind == "table" and only is not None and name not in only)
        ):
            raise ArtifactError(
                f"{path} is not a file of saelab: it holds {str(name)[:60]!r} ({str(kind)[:20]}), "
                "which saelab never writes; move it away"
            )
