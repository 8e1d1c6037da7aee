"""Labels and notes: what people and explainers say of features, apart from the immutable store.

They are in a separate small SQLite database beside the store and belong to a dictionary by its
content hash: a store built again on other text keeps them, a dictionary trained again does not
inherit them.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError, ConfigError, shown
from saelab.formats.database import require_plain_tables
from saelab.formats.files import require_file

LABEL_SCHEMA_VERSION = 1
MAX_LABEL_CHARACTERS = 200
MAX_LABEL_WORDS = 20
MAX_NOTE_CHARACTERS = 10_000
MAX_NAME_CHARACTERS = 100

TABLES = """
CREATE TABLE IF NOT EXISTS label (
    id INTEGER PRIMARY KEY, dictionary TEXT NOT NULL, feature INTEGER NOT NULL,
    text TEXT NOT NULL, author TEXT NOT NULL, method TEXT NOT NULL, score REAL,
    created TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS label_of_feature ON label (dictionary, feature);
CREATE TABLE IF NOT EXISTS note (
    dictionary TEXT NOT NULL, feature INTEGER NOT NULL, text TEXT NOT NULL, author TEXT NOT NULL,
    created TEXT NOT NULL, PRIMARY KEY (dictionary, feature)
);
"""
TYPES: dict[str, type | tuple[type, ...]] = {
    "id": int,
    "feature": int,
    "score": (int, float, type(None)),
}
"""Types of columns that hold no text: SQLite itself lets any value into any column."""


@dataclass(frozen=True)
class Label:
    """What someone says a feature is."""

    id: int
    """Names the label in its database."""
    feature: int
    text: str
    """At most 20 words on one line."""
    author: str
    """Who wrote it: a person or a model."""
    method: str
    """How: "by hand", or the name of an automatic method."""
    score: float | None
    """How well it predicts the feature, as the method says; None where nothing was measured."""
    created: str
    """When, ISO 8601, UTC."""


@dataclass(frozen=True)
class Note:
    """Free text about a feature."""

    feature: int
    text: str
    author: str
    """Who wrote it last."""
    created: str
    """When, ISO 8601, UTC."""


class LabelBook:
    """The labels and notes of one dictionary; safe to share between threads.

    Args:
        path: the database; made by the first write.
        dictionary: content hash of the dictionary (the store's `made_from["dictionary_hash"]`).
        n_features: its latents; other numbers are refused.

    Raises:
        ArtifactError: a file that is no database of labels, or of a newer saelab.
    """

    def __init__(self, path: Path, dictionary: str, n_features: int):
        self.path = Path(path)
        self._dictionary = dictionary
        self._n_features = n_features
        self._lock = threading.Lock()
        if self.path.exists():
            with self._connected():
                pass

    def add(
        self,
        feature: int,
        text: str,
        *,
        author: str,
        method: str = "by hand",
        score: float | None = None,
    ) -> Label:
        """Write a label.

        Raises:
            ConfigError: every thing wrong with it: empty, several lines, too long, no author.
        """
        text, author, method = text.strip(), author.strip(), method.strip()
        problems = self._feature_problems(feature) + _label_problems(text)
        problems += _name_problems(author, "author") + _name_problems(method, "method")
        if score is not None and not math.isfinite(score):
            problems.append(f"score {score} is not a finite number")
        if problems:
            raise ConfigError(problems)
        values = (feature, text, author, method, score, _now())
        with self._connected() as connection:
            cursor = connection.execute(
                "INSERT INTO label (dictionary, feature, text, author, method, score, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self._dictionary, *values),
            )
        assert cursor.lastrowid is not None
        return Label(cursor.lastrowid, *values)

    def delete(self, label_id: int) -> None:
        """Remove a label; one that is gone already is no error."""
        if self.path.exists():
            with self._connected() as connection:
                connection.execute(
                    "DELETE FROM label WHERE id = ? AND dictionary = ?",
                    (label_id, self._dictionary),
                )

    def of(self, feature: int) -> list[Label]:
        """The labels of a feature, newest first."""
        return self._labels("AND feature = ? ORDER BY id DESC", (feature,))

    def all(self) -> list[Label]:
        """Every label, by feature, the oldest of each first."""
        return self._labels("ORDER BY feature, id")

    def latest(self) -> dict[int, Label]:
        """Feature -> its newest label, for tables."""
        return {label.feature: label for label in self.all()}

    def search(self, query: str, limit: int = 50) -> list[Label]:
        """Labels that contain the query, in any case, newest first."""
        wanted = query.strip().casefold()
        if not wanted:
            return []
        labels = self._labels("ORDER BY id DESC")
        return [label for label in labels if wanted in label.text.casefold()][:limit]

    def write_note(self, feature: int, text: str, *, author: str) -> None:
        """Replace the note of a feature; blank text removes it.

        Raises:
            ConfigError: too long, or no author.
        """
        text, author = text.strip(), author.strip()
        problems = self._feature_problems(feature) + _name_problems(author, "author")
        if len(text) > MAX_NOTE_CHARACTERS:
            problems.append(
                f"the note has {len(text):,} characters: at most {MAX_NOTE_CHARACTERS:,} are kept"
            )
        if problems:
            raise ConfigError(problems)
        key = (self._dictionary, feature)
        with self._connected() as connection:
            connection.execute("DELETE FROM note WHERE dictionary = ? AND feature = ?", key)
            if text:
                connection.execute(
                    "INSERT INTO note VALUES (?, ?, ?, ?, ?)", (*key, text, author, _now())
                )

    def note(self, feature: int) -> Note | None:
        """The note of a feature; None where there is none."""
        return next(iter(self._notes("AND feature = ?", (feature,))), None)

    def notes(self) -> dict[int, Note]:
        """Feature -> note, of all that have one."""
        return {note.feature: note for note in self._notes("ORDER BY feature")}

    def _notes(self, rest: str, values: tuple[Any, ...] = ()) -> list[Note]:
        columns = "feature, text, author, created"
        return [Note(*row) for row in self._rows(f"{columns} FROM note", rest, values)]

    def _labels(self, rest: str, values: tuple[Any, ...] = ()) -> list[Label]:
        columns = "id, feature, text, author, method, score, created"
        return [Label(*row) for row in self._rows(f"{columns} FROM label", rest, values)]

    def _rows(self, columns: str, rest: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        sql = f"SELECT {columns} WHERE dictionary = ? {rest}"
        with self._connected() as connection:
            rows = connection.execute(sql, (self._dictionary, *values)).fetchall()
        for row in rows:
            for name, value in zip(columns.partition(" FROM ")[0].split(", "), row, strict=True):
                if not isinstance(value, TYPES.get(name, str)):
                    raise ArtifactError(
                        f"labels in {self.path} were damaged: a {name} is {shown(value)}"
                    )
        return rows

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction; several servers may write to the same file."""
        if self.path.exists():
            require_file(self.path, "database of labels")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, closing(sqlite3.connect(self.path, timeout=10)) as connection:
                self._prepare(connection)
                with connection:
                    yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"labels in {self.path} cannot be read or written ({error}): check that it is "
                "saelab's file and that it may be written, or move it away"
            ) from None

    def _prepare(self, connection: sqlite3.Connection) -> None:
        require_plain_tables(connection, self.path, only=("label", "note"))
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > LABEL_SCHEMA_VERSION:
            raise ArtifactError(
                f"{self.path} has schema version {version}; this saelab reads up to "
                f"{LABEL_SCHEMA_VERSION}: upgrade saelab to read it"
            )
        if version == 0:
            connection.executescript(TABLES)
            connection.execute(f"PRAGMA user_version = {LABEL_SCHEMA_VERSION}")

    def _feature_problems(self, feature: int) -> list[str]:
        if 0 <= feature < self._n_features:
            return []
        return [f"feature {feature} does not exist: there are 0 to {self._n_features - 1}"]


def _label_problems(text: str) -> list[str]:
    """What keeps a text from being a label: explainers' chatter is refused by its length."""
    problems = []
    if not text:
        problems.append("the label is empty: write a few words")
    if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in text):
        problems.append("the label has a line break or a control character: write one line")
    if len(text) > MAX_LABEL_CHARACTERS or len(text.split()) > MAX_LABEL_WORDS:
        problems.append(
            f"the label has {len(text.split())} words and {len(text)} characters: at most "
            f"{MAX_LABEL_WORDS} words and {MAX_LABEL_CHARACTERS} characters are a label; put the "
            "rest into the note"
        )
    return problems


def _name_problems(name: str, what: str) -> list[str]:
    if not name:
        return [f"the {what} is empty: say who or what wrote this"]
    if len(name) > MAX_NAME_CHARACTERS:
        return [f"the {what} has {len(name)} characters: at most {MAX_NAME_CHARACTERS}"]
    return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
