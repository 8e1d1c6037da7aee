"""Manifests that hold a hash of themselves, and of the files beside them."""

from __future__ import annotations

import pytest

from saelab.errors import ArtifactError
from saelab.formats.files import read_json, write_bytes, write_json
from saelab.formats.kinds import KINDS
from saelab.formats.manifest import (
    SEAL,
    check_item_files,
    is_sealed,
    new_manifest,
    read_manifest,
    write_manifest,
)

KIND = "comparison"


@pytest.fixture
def path(tmp_path):
    write_bytes(tmp_path / "rows.parquet", b"rows")
    content = new_manifest(KIND, seed=0, config={"x": (1, 2.5), 3: "m"}, made_from={})
    write_manifest(tmp_path / "compare.json", content | {"item_files": {"rows": "rows.parquet"}})
    return tmp_path / "compare.json"


def test_what_was_written_is_read(path):
    content = read_manifest(path, KIND)
    assert is_sealed(content) and content["config"] == {"x": [1, 2.5], "3": "m"}
    assert check_item_files(content, path) == []
    assert write_manifest(path, content) == content


def test_every_flipped_bit_is_refused_or_changes_nothing(path):
    good, content = path.read_bytes(), read_json(path)
    for index in range(len(good)):
        for bit in range(8):
            flipped = bytearray(good)
            flipped[index] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                read = read_manifest(path, KIND)
            except ArtifactError as error:
                assert "\n" not in str(error).replace("\\n", "")[:20]
            else:
                assert read == content


@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": float("nan")}, {SEAL: None}, {SEAL: 3}])
def test_an_edit_is_refused_in_words(path, change):
    import json

    content = {k: v for k, v in (read_json(path) | change).items() if v is not None}
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"compare\.json .*edited.*`saelab compare`"):
        read_manifest(path, KIND)


def test_manifests_of_before_the_hash_still_open(path):
    content = {k: v for k, v in read_json(path).items() if k != SEAL} | {"schema_version": 1}
    write_json(path, content)
    assert not is_sealed(read_manifest(path, KIND))
    write_json(path, content | {"schema_version": 0})
    with pytest.raises(ArtifactError, match="schema version is 0"):
        read_manifest(path, KIND)


def test_files_beside_it_are_checked(path):
    content = read_manifest(path, KIND)
    (path.parent / "rows.parquet").write_bytes(b"rowz")
    with pytest.raises(ArtifactError, match=r"rows\.parquet is not the file"):
        check_item_files(content, path)
    (path.parent / "rows.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"rows\.parquet beside it: missing"):
        check_item_files(content, path)


def test_the_table_names_every_kind_once_and_says_how_to_make_it():
    assert all(kind.made_by.startswith("saelab ") and kind.files for kind in KINDS.values())
    assert all((kind.sealed_since or 1) <= kind.schema_version for kind in KINDS.values())
