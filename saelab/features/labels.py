"""Labels, explanations and notes: what is said of features, apart from the immutable store.

They are in a separate small SQLite database beside the store and belong to a dictionary by its
content hash: a store built again on other text keeps them, a dictionary trained again does not
inherit them. An explanation is a label that was not written by hand.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from saelab.errors import ArtifactError, ConfigError, shown
from saelab.formats.database import require_plain_tables
from saelab.formats.files import require_file
from saelab.formats.kinds import KINDS

from .label_content import (
    BY_HAND,
    EDITED,
    MAX_NOTE_CHARACTERS,
    Label,
    LabelContent,
    Note,
    Score,
    name_problems,
    problems_of,
    score_problems,
)

LABEL_SCHEMA_VERSION = KINDS["feature_labels"].schema_version
UPGRADES = (
    (  # to version 1
        "CREATE TABLE IF NOT EXISTS label (id INTEGER PRIMARY KEY, dictionary TEXT NOT NULL, "
        "feature INTEGER NOT NULL, text TEXT NOT NULL, author TEXT NOT NULL, method TEXT NOT NULL, "
        "score REAL, created TEXT NOT NULL)",
        "CREATE INDEX IF NOT EXISTS label_of_feature ON label (dictionary, feature)",
        "CREATE TABLE IF NOT EXISTS note (dictionary TEXT NOT NULL, feature INTEGER NOT NULL, "
        "text TEXT NOT NULL, author TEXT NOT NULL, created TEXT NOT NULL, "
        "PRIMARY KEY (dictionary, feature))",
    ),
    (  # to version 2
        "ALTER TABLE label ADD COLUMN model TEXT",
        "ALTER TABLE label ADD COLUMN prompt_hash TEXT",
        "ALTER TABLE label ADD COLUMN scores TEXT NOT NULL DEFAULT '[]'",
        "CREATE TABLE vote (label INTEGER NOT NULL, author TEXT NOT NULL, value INTEGER NOT NULL, "
        "PRIMARY KEY (label, author))",
    ),
)
"""Statements from each schema version to the next."""
COLUMNS = ("id", "feature", "text", "author", "method", "score", "created")
ADDED_COLUMNS = ("model", "prompt_hash", "scores")
"""Columns of a label that version 1 has not."""
NOTE_COLUMNS = ("feature", "text", "author", "created")
TYPES: dict[str, type | tuple[type, ...]] = {
    "id": int,
    "feature": int,
    "score": (int, float, type(None)),
    "model": (str, type(None)),
    "prompt_hash": (str, type(None)),
}
"""Types of columns that hold no text: SQLite itself lets any value into any column."""


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
        method: str = BY_HAND,
        score: float | None = None,
        model: str | None = None,
        prompt_hash: str | None = None,
        scores: tuple[Score, ...] = (),
    ) -> Label:
        """Write a label; see `add_many`."""
        content = LabelContent(
            feature=feature,
            text=text,
            author=author,
            method=method,
            score=score,
            model=model,
            prompt_hash=prompt_hash,
            scores=scores,
        )
        (label_id,) = self.add_many([content])
        return self._labels("AND id = ?", (label_id,))[0]

    def add_many(self, contents: Iterable[LabelContent]) -> list[int]:
        """Write labels and explanations, all or none.

        An explanation takes the place of an earlier one of its feature by the same author, method
        and model, and keeps its votes if it says the same; labels by hand are only ever added.

        Returns:
            The ids of the labels.

        Raises:
            ConfigError: every thing wrong with one: empty, several lines, too long, no author.
        """
        contents = [_stripped(content) for content in contents]
        for content in contents:
            if problems := self._feature_problems(content.feature) + problems_of(content):
                raise ConfigError(problems)
        now = _now()
        with self._connected(write=True) as connection:
            return [self._write(connection, content, now) for content in contents]

    def _write(self, connection: sqlite3.Connection, content: LabelContent, now: str) -> int:
        key = (self._dictionary, content.feature, content.author, content.method, content.model)
        scores = json.dumps([asdict(score) for score in content.scores])
        measured = (content.prompt_hash, content.score, scores, now)
        if content.explains:
            earlier = connection.execute(
                "SELECT id, text FROM label WHERE dictionary = ? AND feature = ? AND author = ? "
                "AND method = ? AND model IS ?",
                key,
            ).fetchall()
            for label_id, text in earlier:
                if text == content.text:
                    connection.execute(
                        "UPDATE label SET prompt_hash = ?, score = ?, scores = ?, created = ? "
                        "WHERE id = ?",
                        (*measured, label_id),
                    )
                    return label_id
                self._erase(connection, label_id)
        cursor = connection.execute(
            "INSERT INTO label (dictionary, feature, author, method, model, prompt_hash, score, "
            "scores, created, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, *measured, content.text),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def edit(self, label_id: int, text: str, *, author: str) -> Label:
        """Put better words in a label's place; those of an explanation stand beside it as edited.

        Raises:
            ConfigError: the label is gone, or the words are no label.
        """
        label = self._of_id(label_id)
        method = EDITED if label.explains else BY_HAND
        edited = self.add(label.feature, text, author=author, method=method)
        if label.method in (BY_HAND, EDITED) and edited.id != label.id:
            self.delete(label.id)
        return edited

    def vote(self, label_id: int, value: Literal[-1, 0, 1], *, author: str) -> None:
        """Vote for (1) or against (-1) a label, or take one's vote back (0): a vote per author.

        Raises:
            ConfigError: the label is gone, or no author.
        """
        label, author = self._of_id(label_id), author.strip()
        if problems := name_problems(author, "author"):
            raise ConfigError(problems)
        with self._connected(write=True) as connection:
            connection.execute(
                "DELETE FROM vote WHERE label = ? AND author = ?", (label.id, author)
            )
            if value:
                connection.execute("INSERT INTO vote VALUES (?, ?, ?)", (label.id, author, value))

    def delete(self, label_id: int) -> None:
        """Remove a label; one that is gone already is no error."""
        if self.path.exists():
            with self._connected(write=True) as connection:
                self._erase(connection, label_id)

    def _erase(self, connection: sqlite3.Connection, label_id: int) -> None:
        deleted = connection.execute(
            "DELETE FROM label WHERE id = ? AND dictionary = ?", (label_id, self._dictionary)
        )
        if deleted.rowcount:  # a later label may get the same id
            connection.execute("DELETE FROM vote WHERE label = ?", (label_id,))

    def _of_id(self, label_id: int) -> Label:
        labels = self._labels("AND id = ?", (label_id,))
        if not labels:
            raise ConfigError(f"label {label_id} is gone: someone removed it; reload the page")
        return labels[0]

    def of(self, feature: int) -> list[Label]:
        """The labels and explanations of a feature, newest first."""
        return self._labels("AND feature = ? ORDER BY id DESC", (feature,))

    def all(self) -> list[Label]:
        """Every label, by feature, the oldest of each first."""
        return self._labels("ORDER BY feature, id")

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
        problems = self._feature_problems(feature) + name_problems(author, "author")
        if len(text) > MAX_NOTE_CHARACTERS:
            problems.append(
                f"the note has {len(text):,} characters: at most {MAX_NOTE_CHARACTERS:,} are kept"
            )
        if problems:
            raise ConfigError(problems)
        key = (self._dictionary, feature)
        with self._connected(write=True) as connection:
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
        if not self.path.exists():
            return []
        with self._connected() as connection:
            rows = self._rows(connection, "note", NOTE_COLUMNS, rest, values)
        return [Note(**row) for row in rows]

    def _labels(self, rest: str, values: tuple[Any, ...] = ()) -> list[Label]:
        if not self.path.exists():
            return []
        with self._connected() as connection:
            added = ADDED_COLUMNS if _version(connection) > 1 else ()
            rows = self._rows(connection, "label", COLUMNS + added, rest, values)
            votes = _votes(connection) if added else {}
        return [
            Label(
                **{**row, "scores": self._scores(row.get("scores", "[]"))},
                votes_up=up,
                votes_down=down,
            )
            for row in rows
            for up, down in [votes.get(row["id"], (0, 0))]
        ]

    def _rows(
        self,
        connection: sqlite3.Connection,
        table: str,
        columns: tuple[str, ...],
        rest: str,
        values: tuple[Any, ...],
    ) -> list[dict[str, Any]]:
        sql = f"SELECT {', '.join(columns)} FROM {table} WHERE dictionary = ? {rest}"
        rows = connection.execute(sql, (self._dictionary, *values)).fetchall()
        for row in rows:
            for name, value in zip(columns, row, strict=True):
                if not isinstance(value, TYPES.get(name, str)):
                    raise self._damaged(name, value)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def _scores(self, text: str) -> tuple[Score, ...]:
        if text == "[]":
            return ()
        try:
            scores = tuple(Score(**fields) for fields in json.loads(text))
            damaged = any(score_problems(score) for score in scores)
        except (ValueError, TypeError, OverflowError, RecursionError):
            damaged, scores = True, ()
        if damaged:
            raise self._damaged("score", text)
        return scores

    def _damaged(self, name: str, value: object) -> ArtifactError:
        return ArtifactError(f"labels in {self.path} were damaged: a {name} is {shown(value)}")

    @contextmanager
    def _connected(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction; several servers may write to the same file."""
        if self.path.exists():
            require_file(self.path, "database of labels")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, closing(sqlite3.connect(self.path, timeout=10)) as connection:
                self._prepare(connection, write)
                with connection:
                    yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"labels in {self.path} cannot be read or written ({error}): check that it is "
                "saelab's file and that it may be written, or move it away"
            ) from None

    def _prepare(self, connection: sqlite3.Connection, write: bool) -> None:
        """Check whose file it is; the first write brings an earlier one to this version."""
        require_plain_tables(connection, self.path, only=("label", "note", "vote"))
        version = _version(connection)
        if version > LABEL_SCHEMA_VERSION:
            raise ArtifactError(
                f"{self.path} has schema version {version}; this saelab reads up to "
                f"{LABEL_SCHEMA_VERSION}: upgrade saelab to read it"
            )
        if version == 0 or (write and version < LABEL_SCHEMA_VERSION):
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                # Another process may have been first.
                for statements in UPGRADES[_version(connection) :]:
                    for statement in statements:
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {LABEL_SCHEMA_VERSION}")

    def _feature_problems(self, feature: int) -> list[str]:
        if 0 <= feature < self._n_features:
            return []
        return [f"feature {feature} does not exist: there are 0 to {self._n_features - 1}"]


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def _votes(connection: sqlite3.Connection) -> dict[int, tuple[int, int]]:
    """Label -> votes for and against it."""
    sql = (
        "SELECT label, COUNT(*) FILTER (WHERE value > 0), COUNT(*) FILTER (WHERE value < 0) "
        "FROM vote GROUP BY label"
    )
    return {label: (up, down) for label, up, down in connection.execute(sql)}


def _stripped(content: LabelContent) -> LabelContent:
    names = {name: getattr(content, name).strip() for name in ("text", "author", "method")}
    return replace(content, **names)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
