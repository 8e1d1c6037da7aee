"""Labels and notes: kept apart from the store, validated on write."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from saelab.errors import ArtifactError, ConfigError
from saelab.features.label_content import LabelContent, Score, one_each
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
    assert one_each(book.all()) == {3: first}, "a person's words come first"
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


SCORES = (Score("detection", 0.8, 0.7, 0.9, 40, 0.5, 0.49), Score("simulation", 0.25))


def explained(feature, text, author="saelab", method="language-model", **more):
    return LabelContent(feature=feature, text=text, author=author, method=method, **more)


def test_explanations_come_back_with_model_prompt_and_scores(book):
    label = book.add(
        3, "word " * 60, author="Ada", method="m", model="tiny", prompt_hash="ab", scores=SCORES
    )
    assert book.of(3) == [label]
    assert (label.model, label.prompt_hash, label.scores) == ("tiny", "ab", SCORES)
    assert label.score_named("simulation") == SCORES[1]
    assert label.score_named("fuzzing") is None


@pytest.mark.parametrize(
    ("text", "scores", "message"),
    [
        ("word " * 61, (), "the explanation has 61 words"),
        ("x" * 401, (), "401 characters"),
        ("a", (Score("detection", float("nan")),), "detection: value is nan"),
        ("a", (Score("detection", 1.0, n=-1),), "n is -1"),
        ("a", (Score("", 1.0),), "a score's name is ''"),
    ],
)
def test_what_is_no_explanation_is_refused_and_nothing_of_its_company_is_written(
    book, text, scores, message
):
    with pytest.raises(ConfigError, match=message):
        book.add_many([explained(1, "good"), explained(2, text, scores=scores)])
    assert book.all() == []


def test_an_explainer_run_again_replaces_its_own_explanations_and_nothing_else(book):
    by_hand = book.add(1, "mine", author="saelab")
    other = book.add(1, "b", author="saelab", method="language-model", model="large")
    book.add_many([explained(1, "first"), explained(2, "same")])
    same = book.of(2)[0]
    book.vote(same.id, 1, author="Ada")
    book.add_many([explained(1, "second"), explained(2, "same", scores=SCORES)])
    assert [label.text for label in book.of(1)] == ["second", "b", "mine"]
    assert {by_hand, other} < set(book.of(1))
    (again,) = book.of(2)
    assert (again.id, again.scores, again.votes_up) == (same.id, SCORES, 1)


def test_votes_are_one_per_author_and_go_with_their_label(book):
    label = book.add(1, "a", author="Ada")
    for author, value in [("Ada", 1), ("Ada", -1), ("Bob", 1), ("Eve", 1), ("Eve", 0)]:
        book.vote(label.id, value, author=author)
    (voted,) = book.of(1)
    assert (voted.votes_up, voted.votes_down) == (1, 1)
    book.delete(label.id)
    (fresh,) = [book.add(1, "b", author="Ada")]
    assert (fresh.votes_up, fresh.votes_down) == (0, 0)
    with pytest.raises(ConfigError, match="is gone"):
        book.vote(99, 1, author="Ada")


def test_edited_labels_are_replaced_and_edited_explanations_stand_beside_their_origin(book):
    label, explanation = (
        book.add(1, "cats", author="Ada"),
        book.add(2, "cats", author="saelab", method="token-context", scores=SCORES),
    )
    assert book.edit(label.id, "big cats", author="Bob").method == "by hand"
    assert [(found.text, found.author) for found in book.of(1)] == [("big cats", "Bob")]
    edited = book.edit(explanation.id, "big cats", author="Bob")
    assert (edited.method, edited.scores) == ("edited", ())
    assert book.of(2) == [edited, explanation]
    again = book.edit(edited.id, "bigger cats", author="Bob")
    assert book.of(2) == [again, explanation]
    assert one_each(book.all())[2] == again


def test_every_feature_is_explained_in_one_transaction(tmp_path, monkeypatch):
    book = LabelBook(tmp_path / "feature_labels.sqlite", "a" * 64, 4608)
    contents = [explained(feature, f"text {feature}", scores=SCORES) for feature in range(4608)]
    opened, connect = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: opened.append(a) or connect(*a, **k))
    book.add_many(contents)
    book.add_many(contents)
    assert len(opened) == 2
    assert len(book.all()) == 4608


@pytest.fixture
def first_version(tmp_path):
    """A book as the saelab before explanations wrote it."""
    path = tmp_path / "feature_labels.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE label (
            id INTEGER PRIMARY KEY, dictionary TEXT NOT NULL, feature INTEGER NOT NULL,
            text TEXT NOT NULL, author TEXT NOT NULL, method TEXT NOT NULL, score REAL,
            created TEXT NOT NULL
        );
        CREATE INDEX label_of_feature ON label (dictionary, feature);
        CREATE TABLE note (
            dictionary TEXT NOT NULL, feature INTEGER NOT NULL, text TEXT NOT NULL,
            author TEXT NOT NULL, created TEXT NOT NULL, PRIMARY KEY (dictionary, feature)
        );
        PRAGMA user_version = 1;
        """
    )
    connection.execute(
        "INSERT INTO label VALUES (7, ?, 3, 'old', 'Ada', 'by hand', 0.5, '2026-01-01')",
        ("a" * 64,),
    )
    connection.commit()
    connection.close()
    return LabelBook(path, "a" * 64, 10)


def test_a_book_of_the_first_version_is_read_as_it_is_and_upgraded_by_the_first_write(
    first_version,
):
    before = first_version.path.read_bytes()
    (old,) = first_version.of(3)
    assert (old.id, old.text, old.score, old.model, old.scores) == (7, "old", 0.5, None, ())
    assert first_version.note(3) is None
    assert first_version.path.read_bytes() == before
    new = first_version.add(3, "new", author="x", method="m", scores=SCORES)
    assert first_version.of(3) == [new, old]
    with sqlite3.connect(first_version.path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


def test_an_upgrade_that_fails_leaves_the_book_as_it_was(first_version, monkeypatch):
    from saelab.features import labels

    before = first_version.path.read_bytes()
    first, second = labels.UPGRADES
    monkeypatch.setattr(labels, "UPGRADES", (first, (*second, "no such statement")))
    with pytest.raises(ArtifactError, match="cannot be read or written"):
        first_version.add(3, "new", author="Ada")
    assert first_version.path.read_bytes() == before
    monkeypatch.undo()
    first_version.add(3, "new", author="Ada")


@pytest.mark.parametrize("scores", ["{", "3", '[{"name": "a"}]', '[{"name": "a", "value": NaN}]'])
def test_damaged_scores_are_said(book, scores):
    book.add(1, "a", author="x", method="m", scores=SCORES)
    with sqlite3.connect(book.path) as connection:
        connection.execute("UPDATE label SET scores = ?", (scores,))
    connection.close()
    with pytest.raises(ArtifactError, match="were damaged: a score is"):
        book.all()
