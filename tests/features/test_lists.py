"""Lists of features: kept whole, one file each, exchanged as they are."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from saelab.commands.info import describe
from saelab.errors import ArtifactError, ConfigError
from saelab.features.lists import (
    ENDING,
    MOST_FEATURES,
    FeatureList,
    ListedFeature,
    ListShelf,
    list_from_bytes,
    shelf_of,
)


@pytest.fixture
def shelf(tmp_path):
    return ListShelf(tmp_path / "feature_lists")


def item(feature, dictionary="a" * 64, note=""):
    return ListedFeature(dictionary=dictionary, name="toy", feature=feature, note=note)


def test_a_list_comes_back_in_its_order_with_its_notes(shelf):
    assert shelf.all() == ([], []) and not shelf.folder.exists()
    kept = shelf.add(FeatureList(name=" War ", description="line\nline"))
    assert kept.name == "War" and kept.id and kept.sha256
    changed = shelf.change(
        kept.id, lambda old: old.with_features([item(3, note="first"), item(1), item(3, "b" * 64)])
    )
    assert shelf.of(kept.id) == changed
    assert [(i.feature, i.dictionary[0], i.note) for i in changed.features] == [
        (3, "a", "first"),
        (1, "a", ""),
        (3, "b", ""),
    ]
    again = changed.with_features([item(3, note="later"), item(2)])
    assert [i.feature for i in again.features] == [3, 1, 3, 2], "what is held stays where it is"
    assert again.features[0].note == "first"
    assert "intact: its content has the SHA-256 it was written with" in describe(
        shelf.folder / f"{kept.id}{ENDING}"
    )
    shelf.remove(kept.id)
    with pytest.raises(ConfigError, match="there is no list"):
        shelf.of(kept.id)


def test_what_is_no_list_is_refused_and_leaves_the_old_one(shelf):
    kept = shelf.add(FeatureList(name="War").with_features([item(1)]))
    for wrong, message in (
        (FeatureList(name=" "), "needs a name"),
        (FeatureList(name="War"), "there is a list 'War' already"),
        (FeatureList(name="x" * 101), "1 to 100 characters"),
        (FeatureList(name="n", description="x" * 10_001), "10,001 characters"),
        (FeatureList(name="n").with_features([item(-1)]), "index is -1"),
        (FeatureList(name="n").with_features(map(item, range(MOST_FEATURES + 1))), "1,001 feat"),
    ):
        with pytest.raises(ConfigError, match=message):
            shelf.add(wrong)
        if wrong.name != "War":
            with pytest.raises(ConfigError, match=message):
                shelf.change(kept.id, lambda _, wrong=wrong: wrong)
    assert shelf.all() == ([kept], [])


def test_no_text_of_an_address_reaches_a_path(shelf, tmp_path):
    kept = shelf.add(FeatureList(name="War"))
    (tmp_path / f"outside{ENDING}").write_bytes(shelf.exported(kept.id))
    (shelf.folder / f"linked{ENDING}").symlink_to(tmp_path / f"outside{ENDING}")
    for list_id in ("../outside", "", "*", "/etc/passwd", "\0", f"x/../{kept.id}"):
        with pytest.raises(ConfigError, match="there is no list"):
            shelf.of(list_id)
    with pytest.raises(ArtifactError, match="is a link"):
        shelf.of("linked")


def test_a_damaged_list_takes_no_other_away(shelf):
    first, second = (shelf.add(FeatureList(name=name)) for name in ("first", "second"))
    path = shelf.folder / f"{first.id}{ENDING}"
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[: len(whole) // 2],
        whole.replace(b"first", b"worst"),
        b"[]",
        b"\xff",
    ):
        path.write_bytes(damaged)
        lists, problems = shelf.all()
        assert lists == [second] and len(problems) == 1 and str(path) in problems[0]
        with pytest.raises(ArtifactError):
            shelf.change(first.id, lambda old: old.with_features([item(1)]))
        assert path.read_bytes() == damaged, "what may be mended by hand is not written over"


def test_an_exported_list_is_imported_elsewhere(shelf, tmp_path):
    kept = shelf.add(
        FeatureList(name="War \u202e").with_features([item(1, note="\u2066a"), item(2)])
    )
    content = shelf.exported(kept.id)
    read = list_from_bytes(content, "a.json")
    assert read.sha256 == kept.sha256, "what is exported is the file itself"
    other = ListShelf(tmp_path / "elsewhere")
    imported = other.add(read)
    assert replace(imported, id="", sha256="") == replace(kept, id="", sha256="")
    edited = json.loads(content)
    edited["features"][0]["feature"] = 7
    for wrong in (json.dumps(edited).encode(), b"{}", b"no JSON", b'{"kind": "feature_store"}'):
        with pytest.raises(ArtifactError, match=r"a\.json"):
            list_from_bytes(wrong, "a.json")


def test_ten_who_add_at_once_lose_nothing(shelf):
    kept = shelf.add(FeatureList(name="War"))
    with ThreadPoolExecutor(10) as pool:
        adds = [
            pool.submit(shelf.change, kept.id, lambda old, n=n: old.with_features([item(n)]))
            for n in range(10)
        ]
    assert all(add.exception() is None for add in adds)
    assert sorted(i.feature for i in shelf.of(kept.id).features) == list(range(10))


def test_lists_lie_in_the_first_folder_given(tmp_path):
    (tmp_path / "a.sqlite").touch()
    assert shelf_of([tmp_path, tmp_path / "b"]).folder == tmp_path / "feature_lists"
    assert shelf_of([tmp_path / "a.sqlite"]).folder == tmp_path / "feature_lists"
