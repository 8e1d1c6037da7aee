"""Labels and notes: kept apart from the store, validated on write."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from saelab.errors import ArtifactError, ConfigError
from saelab.features.labels import LabelBook


@pytest.fixture
def book(tmp_path):
    return LabelBook(tmp_path / "feature_labels.sqlite", "a" * 64, 10)


def test_labels_come_back_newest_first_with_author_method_and_score(book):
    assert book.of(3) == []
    assert not book.path.exists()
    first = book.add(3, " kings and queens ", author="Ada")
    second = book.add(3, "royalty", author="model-x", method="detection", score=0.75)
    assert book.of(3) == [second, first]
    assert first.text == "kings and queens"
    assert (second.author, second.method, second.score) == ("model-x", "detection", 0.75)
    assert book.latest() == {3: second}
    assert book.all() == [first, second]
    assert book.search("KINGS") == [first]
    assert book.search(" ") == []
    book.delete(second.id)
    assert book.of(3) == [first]


def test_hostile_labels_are_text(book):
    text = """<script>alert('1')</script>"; DROP TABLE label; -- 👑 שלום"""
    book.add(1, text, author="<b>")
    assert book.of(1)[0].text == text
    assert book.search("drop table")[0].text == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the label is empty"),
        ("  ", "the label is empty"),
        ("two\nlines", "line break or a control character"),
        ("bell \x07", "line break or a control character"),
        ("word " * 21, "21 words.*put the rest into the note"),
        ("x" * 201, "201 characters"),
    ],
)
def test_what_is_no_label_is_refused(book, text, message):
    with pytest.raises(ConfigError, match=message):
        book.add(1, text, author="Ada")


def test_every_problem_is_named_at_once(book):
    with pytest.raises(ConfigError, match=r"feature 10 does not exist.*empty.*author.*score nan"):
        book.add(10, "", author=" ", score=float("nan"))
    with pytest.raises(ConfigError, match=r"feature -1.*10,001 characters"):
        book.write_note(-1, "x" * 10_001, author="Ada")


def test_notes_are_replaced_and_blank_ones_removed(book):
    assert book.note(2) is None
    book.write_note(2, "first\nsecond line", author="Ada")
    book.write_note(2, "better", author="Bob")
    assert (book.note(2).text, book.note(2).author) == ("better", "Bob")
    assert list(book.notes()) == [2]
    book.write_note(2, " ", author="Bob")
    assert book.note(2) is None


def test_another_dictionarys_labels_are_not_shown(book):
    book.add(1, "mine", author="Ada")
    book.write_note(1, "mine", author="Ada")
    other = LabelBook(book.path, "b" * 64, 10)
    assert other.of(1) == []
    assert other.note(1) is None
    other.delete(book.of(1)[0].id)
    assert len(book.of(1)) == 1


def test_foreign_and_newer_files_are_refused(tmp_path):
    foreign = tmp_path / "foreign.sqlite"
    foreign.write_text("not a database, but long enough to be looked at" * 10)
    with pytest.raises(ArtifactError, match="cannot be read or written"):
        LabelBook(foreign, "a", 1)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(ArtifactError, match=r"schema version 7.*upgrade saelab"):
        LabelBook(newer, "a", 1)


def test_ten_people_may_write_at_once(book):
    def write(index):
        own = LabelBook(book.path, "a" * 64, 10)
        for _ in range(3):
            own.add(index, f"label {index}", author=f"person {index}")

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(write, range(10)))
    assert [len(book.of(feature)) for feature in range(10)] == [3] * 10
