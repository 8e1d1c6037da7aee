"""Labels, explanations and notes: what is said of features, apart from the immutable store.

They are in a separate small SQLite database beside the store and belong to a dictionary by its
content hash: a store built again on other text keeps them, a dictionary trained again does not
inherit them. An explanation is a label that was not written by hand.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from saelab.errors import ArtifactError, ConfigError, shown
from saelab.formats.database import require_plain_tables
from saelab.formats.files import require_file
from saelab.formats.kinds import KINDS

LABEL_SCHEMA_VERSION = KINDS["feature_labels"].schema_version
BY_HAND = "by hand"
EDITED = "edited"
"""Method of what a person made of an explanation."""
TOO_WEAK = "language-model (too weak)"
"""Method of texts that show how explaining works and are not worth reading."""
MAX_LABEL_WORDS, MAX_LABEL_CHARACTERS = 20, 200
MAX_EXPLANATION_WORDS, MAX_EXPLANATION_CHARACTERS = 60, 400
MAX_NOTE_CHARACTERS = 10_000
MAX_NAME_CHARACTERS = 100

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


@dataclass(frozen=True)
class Score:
    """How well an explanation predicts its feature, with the same number of things that cannot."""

    name: str
    """What was measured: a key of `SCORE_DEFINITIONS`, or another program's name."""
    value: float
    low: float | None = None
    """Ends of the 95 % interval over examples; None where there is none."""
    high: float | None = None
    n: int = 0
    """Items judged."""
    shuffled: float | None = None
    """Control: the same score of another feature's explanation."""
    random: float | None = None
    """Control: the same score of a text that explains nothing."""


SCORE_DEFINITIONS = {
    "detection": "balanced accuracy of telling held-out contexts in which the feature fires from "
    "those in which it does not; 0.5 is chance",
    "fuzzing": "balanced accuracy of telling held-out contexts whose marked tokens fire from those "
    "with others marked; 0.5 is chance",
    "simulation": "Pearson correlation of predicted and true activations over held-out tokens; "
    "0 is chance",
    "embedding": "share of pairs in which the explanation's embedding is nearer to a held-out "
    "context that fires than to one that does not (AUC); 0.5 is chance",
    "intervention": "share of right answers on which of two texts was written with the feature "
    "boosted; 0.5 is chance",
}
"""Name of a score -> what it says."""


@dataclass(frozen=True, kw_only=True)
class LabelContent:
    """What someone or something says a feature is, as it is given to be written."""

    feature: int
    text: str
    """One line: at most 20 words by hand, 60 of an explanation."""
    author: str
    """Who wrote it: a person or a program."""
    method: str = BY_HAND
    """How: "by hand", or the name of an automatic method."""
    score: float | None = None
    """One number of how well it predicts the feature, as the method says; None: none."""
    model: str | None = None
    """The language model that wrote it; None where there was none."""
    prompt_hash: str | None = None
    """Names the words the model was asked with."""
    scores: tuple[Score, ...] = ()

    @property
    def explains(self) -> bool:
        """Whether it is an explanation."""
        return self.method != BY_HAND

    def score_named(self, name: str) -> Score | None:
        """The score of this name; None where it was not measured."""
        return next((score for score in self.scores if score.name == name), None)


@dataclass(frozen=True, kw_only=True)
class Label(LabelContent):
    """A label or explanation as it stands in the book."""

    id: int
    """Names the label in its database."""
    created: str
    """When, ISO 8601, UTC."""
    votes_up: int = 0
    votes_down: int = 0


@dataclass(frozen=True)
class Note:
    """Free text about a feature."""

    feature: int
    text: str
    author: str
    """Who wrote it last."""
    created: str
    """When, ISO 8601, UTC."""


def one_each(labels: Iterable[Label]) -> dict[int, Label]:
    """Feature -> the label shown where there is room for one.

    People's words come before explanations, then what has more votes, then the newest; what a
    model that is too weak wrote is never it.
    """
    worth = (label for label in labels if label.method != TOO_WEAK)
    return {label.feature: label for label in sorted(worth, key=prominence)}


def prominence(label: Label) -> tuple[bool, bool, int, int]:
    """What labels of a feature are ordered by, the one shown first last."""
    by_person = label.method in (BY_HAND, EDITED)
    return by_person, label.method != TOO_WEAK, label.votes_up - label.votes_down, label.id


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
        if problems := _name_problems(author, "author"):
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
        own = connection.execute(
            "DELETE FROM label WHERE id = ? AND dictionary = ?", (label_id, self._dictionary)
        )
        if own.rowcount:  # a later label may get the same id
            connection.execute("DELETE FROM vote WHERE label = ?", (label_id,))

    def _of_id(self, label_id: int) -> Label:
        found = self._labels("AND id = ?", (label_id,))
        if not found:
            raise ConfigError(f"label {label_id} is gone: someone removed it; reload the page")
        return found[0]

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
        problems = self._feature_problems(feature) + _name_problems(author, "author")
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
            damaged = any(_score_problems(score) for score in scores)
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


def problems_of(content: LabelContent) -> list[str]:
    """What keeps a text from being a label: explainers' chatter is refused by its length."""
    problems, text = [], content.text
    what, words, characters = "label", MAX_LABEL_WORDS, MAX_LABEL_CHARACTERS
    if content.explains:
        what, words, characters = (
            "explanation",
            MAX_EXPLANATION_WORDS,
            MAX_EXPLANATION_CHARACTERS,
        )
    if not text:
        problems.append(f"the {what} is empty: write a few words")
    if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in text):
        problems.append(f"the {what} has a line break or a control character: write one line")
    if len(text) > characters or len(text.split()) > words:
        problems.append(
            f"the {what} has {len(text.split())} words and {len(text)} characters: at most "
            f"{words} words and {characters} characters are kept; put the rest into the note"
        )
    problems += _name_problems(content.author, "author") + _name_problems(content.method, "method")
    if content.score is not None and not math.isfinite(content.score):
        problems.append(f"score {content.score} is not a finite number")
    return problems + [problem for score in content.scores for problem in _score_problems(score)]


def _score_problems(score: Score) -> list[str]:
    """What keeps it from being a score, be it given or read."""
    problems = []
    if not isinstance(score.name, str) or not 0 < len(score.name) <= MAX_NAME_CHARACTERS:
        problems.append(f"a score's name is {shown(score.name)}: expected a word")
    if type(score.n) is not int or score.n < 0:
        problems.append(f"score {score.name}: n is {shown(score.n)}, expected a count")
    for name in ("value", "low", "high", "shuffled", "random"):
        value = getattr(score, name)
        if value is None and name != "value":
            continue
        if not isinstance(value, int | float) or not math.isfinite(value):
            problems.append(
                f"score {score.name}: {name} is {shown(value)}, expected a finite number"
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
