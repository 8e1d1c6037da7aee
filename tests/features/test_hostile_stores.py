"""Feature stores and label files of others: read, or refused in words, at once."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import time
from contextlib import closing, suppress

import pytest
from hostile import damaged, json_text, mutated

from saelab.commands.info import describe
from saelab.errors import ArtifactError, SaelabError
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore
from saelab.formats.manifest import seal

ROUNDS = 25
CELLS = (None, -1, 0, 10**18, -(2**63), 1e308, "", "x", "\x1f\x1f", b"", b"\xff" * 7, b"\0" * 4000)
FOR_EVER = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT i AS id, 'toy' AS dictionary, i AS feature, 'a' AS text, 'a' AS author, 'a' AS method, "
    "NULL AS score, 'a' AS created FROM n"
)


def run(path, *statements):
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(*statement) if isinstance(statement, tuple) else (
                connection.execute(statement)
            )


def use_store(path):
    with FeatureStore(path) as store:
        dict(store.table())
        store.feature(2, 0)  # one alone: type checks in tests make reading slow
        store.search("king")
        store.search("=")
        store.flag("dead")
        store.context_pieces(0)


def verify_store(path):
    with FeatureStore(path) as store:
        store.verify()


def use_labels(path):
    book = LabelBook(path, "toy", 12)
    book.all()
    book.notes()
    book.search("a")


def in_words(action, path):
    started = time.process_time()
    try:
        action(path)
    except SaelabError as error:
        assert len(str(error)) < 2000
    assert time.process_time() - started < 5


@pytest.fixture
def store(tiny_store_path, tmp_path):
    return shutil.copy(tiny_store_path, tmp_path / "features.sqlite")


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "feature_labels.sqlite"
    book = LabelBook(path, "toy", 12)
    for feature in range(4):
        book.add(feature, "a label", author="me", score=0.5)
        book.write_note(feature, "a note", author="me")
    return path


def changed_cell(path, chance):
    """Put an odd value, or damaged bytes, into one column of a table."""
    with closing(sqlite3.connect(path)) as connection, connection:
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'search%'"
        table = chance.choice([name for (name,) in connection.execute(sql)])
        if table == "manifest":
            (text,) = connection.execute("SELECT content FROM manifest").fetchone()
            content = mutated(json.loads(text), chance)
            with suppress(ValueError):  # NaN
                content = seal(content)
            connection.execute("UPDATE manifest SET content = ?", (json_text(content).decode(),))
            return
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        column, value = chance.choice(columns), chance.choice(CELLS)
        held = connection.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone()
        if held and isinstance(held[0], bytes) and chance.random() < 0.6:
            value = damaged(held[0], chance)
        with suppress(sqlite3.Error):  # what the schema itself refuses
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (value,))


def changed_bytes(path, chance):
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 30)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(data)


@pytest.mark.parametrize("change", [changed_cell, changed_bytes])
def test_changed_stores(change, store):
    chance, good = random.Random(0), store.read_bytes()
    for _ in range(ROUNDS):
        store.write_bytes(good)
        change(store, chance)
        in_words(use_store, store)
        in_words(verify_store, store)


@pytest.mark.parametrize("change", [changed_cell, changed_bytes])
def test_changed_labels(change, labels):
    chance, good = random.Random(1), labels.read_bytes()
    for _ in range(ROUNDS):
        labels.write_bytes(good)
        change(labels, chance)
        in_words(use_labels, labels)
        in_words(describe, labels)


def test_a_view_that_never_ends_is_refused(labels, store):
    run(labels, "DROP TABLE label", f"CREATE VIEW label AS {FOR_EVER}")
    for action in (use_labels, describe):
        with pytest.raises(ArtifactError, match=r"holds 'label' \(view\), which saelab never"):
            action(labels)
    run(store, "DROP TABLE sequence", f"CREATE VIEW sequence AS {FOR_EVER}")
    for action in (use_store, describe):
        with pytest.raises(ArtifactError, match=r"holds 'sequence' \(view\)"):
            action(store)


def test_a_column_that_is_computed_when_read_is_refused(labels):
    run(labels, "ALTER TABLE note ADD COLUMN more GENERATED ALWAYS AS (zeroblob(900000000))")
    with pytest.raises(ArtifactError, match="holds 'note'"):
        use_labels(labels)


def test_a_database_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "feature_labels.sqlite"
    run(path, "CREATE TABLE people (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="is not a file of saelab: it holds 'people'"):
        LabelBook(path, "toy", 12).add(1, "a", author="me")
    assert path.read_bytes() == before


def test_a_journal_beside_a_finished_store_is_not_played_into_it(store):
    journal = store.with_name("features.sqlite-journal")
    journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\0" * 2000)
    before = store.read_bytes()
    use_store(store)
    assert store.read_bytes() == before and journal.exists()
