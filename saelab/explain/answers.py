"""Every answer that was paid for, by what was asked: nothing is asked twice, even after a kill.

A question's key is the hash of the model's name and of all that is asked, so that a changed prompt
is another question. The address of a server is not in it: a server may move. An answer is on disk
before it is used; several processes may share the file.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from saelab.errors import ArtifactError, Stopped
from saelab.formats.database import require_plain_tables
from saelab.formats.files import full_disk_said, require_file
from saelab.formats.kinds import KINDS
from saelab.interrupts import StopRequest

from .endpoint import Answer, Answerer, Question

ANSWER_FILE = "explanation_answers.sqlite"
"""In the dictionary's folder."""
ANSWER_SCHEMA_VERSION = KINDS["explanation_answers"].schema_version
CHARACTERS_PER_TOKEN, TOKENS_PER_ANSWER = 4, 60
"""Rough figures for estimates; models that think aloud write many times more."""
TABLE = """
CREATE TABLE IF NOT EXISTS answer (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, refused INTEGER NOT NULL, created TEXT NOT NULL,
    sha256 TEXT NOT NULL
)
"""
FIELDS = "text, prompt_tokens, completion_tokens, refused"


class AnswerBook:
    """Answers on disk; safe to share between threads and processes.

    Args:
        path: the file; made by the first answer.

    Raises:
        ArtifactError: a file that is no book of answers, or of a newer saelab.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        if self.path.exists():
            with self._connected():
                pass

    def __enter__(self) -> AnswerBook:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._connection is not None:
            with self._lock:
                self._connection.close()

    def get(self, key: str) -> Answer | None:
        """The answer to a question that was asked before.

        Raises:
            ArtifactError: it is not the answer that was written.
        """
        if not self.path.exists():
            return None
        with self._connected() as connection:
            row = connection.execute(
                f"SELECT {FIELDS}, sha256 FROM answer WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else _checked(key, row, self.path)

    def put(self, key: str, model: str, answer: Answer) -> None:
        """Keep an answer; a kill after this returns does not lose it."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connected() as connection:
            connection.execute(
                f"INSERT OR REPLACE INTO answer (key, model, {FIELDS}, created, sha256) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key, model, *astuple(answer), now, _seal(key, answer)),
            )

    def verify(self) -> int:
        """Check every answer, and say how many there are.

        Raises:
            ArtifactError: one is not what was written, or there is none.
        """
        with self._connected() as connection:
            rows = connection.execute(f"SELECT key, {FIELDS}, sha256 FROM answer").fetchall()
        if not rows:
            raise ArtifactError(
                f"{self.path} holds no answers: it was emptied, or no question was answered yet; "
                "`saelab explain` asks them"
            )
        for key, *row in rows:
            _checked(key, row, self.path)
        return len(rows)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one statement of one thread."""
        try:
            with full_disk_said(self.path), self._lock:
                if self._connection is None:
                    self._connection = _connect(self.path)
                yield self._connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"answers in {self.path} cannot be read or written ({error}): check that it is "
                "saelab's file and that it may be written, or move it away"
            ) from None


def _connect(path: Path) -> sqlite3.Connection:
    if path.exists():
        require_file(path, "book of answers")
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    try:
        require_plain_tables(connection, path, only=("answer",))
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > ANSWER_SCHEMA_VERSION:
            raise ArtifactError(
                f"{path} has schema version {version}; this saelab reads up to "
                f"{ANSWER_SCHEMA_VERSION}: upgrade saelab to read it"
            )
        # A log beside the file, not flushed for every answer: safe from a kill, and 100 times
        # as fast; where the power fails the last answers may be lost and are asked again.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if version == 0:
            connection.execute(TABLE)
            connection.execute(f"PRAGMA user_version = {ANSWER_SCHEMA_VERSION}")
        # In a damaged index an answer is not found, and would be paid for again.
        (state,) = connection.execute("PRAGMA integrity_check").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(str(state).splitlines()[0])
    except BaseException:
        connection.close()
        raise
    return connection


def _seal(key: str, answer: Answer) -> str:
    return hashlib.sha256(repr((key, *astuple(answer))).encode()).hexdigest()


def _checked(key: str, row: list[object] | tuple[object, ...], path: Path) -> Answer:
    *values, seal = row
    types = (str, int, int, int)
    if all(isinstance(value, of) for value, of in zip(values, types, strict=True)):
        text, prompt_tokens, completion_tokens, refused = values
        answer = Answer(text, prompt_tokens, completion_tokens, bool(refused))  # type: ignore[arg-type]
        if _seal(key, answer) == seal:
            return answer
    raise ArtifactError(
        f"{path} was damaged: an answer is not the one that was written; move the file away and "
        "its questions are asked again"
    )


@dataclass
class Tally:
    """What was asked so far, and what it came to."""

    asked: int = 0
    """Questions that the model was asked now."""
    known: int = 0
    """Questions answered before, by this command or an earlier one."""
    prompt_tokens: int = 0
    """Read by the model for those asked now, as it counts them."""
    completion_tokens: int = 0
    """Written by the model for those asked now."""
    refused: int = 0
    """Answers that were refusals."""
    unreadable: int = 0
    """Answers that said nothing in the form asked for."""


class Asker:
    """Asks a model what it was not asked before; counts; safe to share between threads.

    Args:
        answerer: the model.
        book: what was answered before.
        stop: asked before every question to the model; where it is set, nothing more is asked.
    """

    def __init__(self, answerer: Answerer, book: AnswerBook, stop: StopRequest | None = None):
        self.model = answerer.name
        self._answerer, self._book, self._stop = answerer, book, stop
        self.tally = Tally()
        self._lock = threading.Lock()

    def __call__(self, question: Question) -> Answer:
        """The answer, from the book or else from the model.

        Raises:
            Stopped: a signal asked to stop.
        """
        key = question.key(self.model)
        known = self._book.get(key)
        answer = known or self._fresh(question, key)
        with self._lock:
            self.tally.known += known is not None
            self.tally.refused += answer.refused
            if known is None:
                self.tally.asked += 1
                self.tally.prompt_tokens += answer.prompt_tokens
                self.tally.completion_tokens += answer.completion_tokens
        return answer

    def _fresh(self, question: Question, key: str) -> Answer:
        if self._stop:
            raise Stopped(
                "stopped: every answer so far is kept; the same command goes on",
                self._stop.signal_name,
            )
        answer = self._answerer.ask(question)
        self._book.put(key, self.model, answer)
        return answer

    def note_unreadable(self, *, refused: bool = False) -> None:
        """Count an answer that says nothing in the form asked for, or refuses in words."""
        with self._lock:
            self.tally.refused += refused
            self.tally.unreadable += not refused


class CountingAsker(Asker):
    """Asks nothing: counts what would be asked, by what the book holds already."""

    def _fresh(self, question: Question, key: str) -> Answer:  # noqa: ARG002 - nothing is kept
        length = len(question.system) + len(question.user)
        return Answer("", length // CHARACTERS_PER_TOKEN, TOKENS_PER_ANSWER)
