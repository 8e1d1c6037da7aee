"""`saelab info` on whole, damaged and newer artifacts: a verdict, or one line naming the fault."""

import json
import sqlite3

import pytest

from saelab.cli import main
from saelab.commands.info import DESCRIBERS, describe
from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    write_evaluation_result,
)
from saelab.formats.files import write_bytes, write_json
from saelab.formats.kinds import KINDS
from saelab.formats.manifest import new_manifest, require_fields, write_manifest

WITH_MANIFEST = sorted(kind.name for kind in KINDS.values() if kind.has_manifest)


def manifest(kind, **more):
    """Of schema version 1, which held no hash of itself."""
    return new_manifest(kind, 1, seed=0, config={}, made_from={"model": "m"}) | more


def edit(path, **changes):
    content = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            del content[name]
        else:
            content[name] = value
    write_manifest(path, content)


def test_every_kind_of_the_table_can_be_described():
    assert set(DESCRIBERS) == set(KINDS)


def test_required_fields_are_named_with_the_file(tmp_path):
    path = tmp_path / "x.json"
    assert require_fields({"a": 1}, {"a": int}, path) == {"a": 1}
    with pytest.raises(ArtifactError, match=r"x\.json.*'b' is missing, 'a' is of type str"):
        require_fields({"a": "1"}, {"a": int, "b": (int, float)}, path)


@pytest.mark.parametrize("kind", WITH_MANIFEST)
def test_every_newer_artifact_is_refused(kind, tmp_path):
    write_json(tmp_path / "run.json", manifest(kind) | {"schema_version": 99})
    with pytest.raises(ArtifactError, match=r"run\.json has schema version 99.*upgrade"):
        describe(tmp_path)


@pytest.mark.parametrize("kind", WITH_MANIFEST)
def test_no_artifact_that_lacks_its_fields_gets_a_traceback(kind, tmp_path):
    write_json(tmp_path / "run.json", {"kind": kind, "schema_version": 1})
    with pytest.raises(ArtifactError, match=r"run\.json .*missing|incomplete or was edited"):
        describe(tmp_path)
    write_json(tmp_path / "run.json", manifest(kind))
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        describe(tmp_path)
    write_json(tmp_path / "run.json", manifest(kind) | {"library_versions": None, "file": 3})
    with pytest.raises(ArtifactError, match=r"run\.json.*NoneType|'file' is of type int"):
        describe(tmp_path)


def test_an_unknown_kind_and_no_artifact_at_all(tmp_path):
    write_json(tmp_path / "run.json", manifest("teapot"))
    with pytest.raises(ArtifactError, match="'teapot', which this saelab does not know"):
        describe(tmp_path)
    write_json(tmp_path / "run.json", manifest("teapot") | {"kind": []})
    with pytest.raises(ArtifactError, match="which this saelab does not know"):
        describe(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        describe(tmp_path / "nothing")
    write_json(tmp_path / "a" / "b" / "core.json", manifest("evaluation_result"))
    with pytest.raises(ArtifactError, match=r"holds no saelab artifact; try .*b"):
        describe(tmp_path / "a")


def test_evaluation_results_get_a_verdict(tmp_path):
    metric = MeasuredMetric(name="fvu", value=0.25, unit="1", definition="…")
    result = EvaluationResult(
        suite="core",
        dictionary_name="d",
        dictionary_hash="abc",
        settings={},
        made_from={"model": "m"},
        metrics=(metric,),
        item_files={"features": "features.parquet"},
    )
    folder = tmp_path / "evals"
    write_evaluation_result(folder / "core.json", result)
    with pytest.raises(ArtifactError, match=r"features\.parquet beside it: missing"):
        describe(folder)
    write_bytes(folder / "features.parquet", b"")
    assert describe(folder)[-1].startswith("not checked: features.parquet")
    write_evaluation_result(folder / "core.json", result)
    lines = describe(folder)
    assert "fvu: 0.25" in lines and lines[-1].startswith("intact: ")
    edit(folder / "core.json", suite=None)
    with pytest.raises(ArtifactError, match=r"core\.json is not a usable.*'suite' is missing"):
        describe(folder)


def test_runs_and_checkpoints(tmp_path):
    file, pointer = tmp_path / "run.json", tmp_path / "checkpoint" / "checkpoint.json"
    write_manifest(file, manifest("training_run", status="running"))
    assert describe(tmp_path)[-1].startswith("unfinished: continue")
    write_json(
        pointer, {"kind": "checkpoint", "schema_version": 1, "file": "c", "sha256": "0", "step": 5}
    )
    with pytest.raises(ArtifactError, match="is missing or not the file that was saved"):
        describe(tmp_path)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    edit(pointer, sha256=empty)
    write_bytes(pointer.parent / "c", b"")
    assert "checkpoint, steps taken: 5" in describe(tmp_path)
    write_json(file, manifest("training_run", status="complete", dictionaries={"d": {"fvu": 1}}))
    with pytest.raises(ArtifactError, match=r"run\.json.*'folder' is missing, 'l0' is missing"):
        describe(tmp_path)
    write_json(file, manifest("training_run", status="complete", dictionaries={"d": 7}))
    with pytest.raises(ArtifactError, match=r"run\.json.*'d' is of type int"):
        describe(tmp_path)


def test_an_unfinished_cache_has_its_shards_checked(tmp_path, tiny_model_folder):
    from saelab.cache.config import HarvestConfig
    from saelab.cache.writer import write_caches
    from saelab.text.contexts import TextConfig

    text = tmp_path / "text.txt"
    text.write_text("the king met the queen at the old mill near the river. " * 400)
    config = HarvestConfig(
        model=str(tiny_model_folder),
        hook_points=("blocks.1.hook_resid_post",),
        text=TextConfig(source=str(text), held_out_fraction=0.0),
        context_length=32,
        n_tokens=512,
        batch_contexts=4,
        model_dtype="float32",
        contexts_per_shard=8,
        device="cpu",
    )
    (folder,) = write_caches(tmp_path / "cache", config)
    assert describe(folder)[-1].startswith("intact: ")
    edit(folder / "manifest.json", status="writing")
    lines = describe(folder)
    assert lines[-2].startswith("intact so far: 2 shards") and "--resume" in lines[-1]
    shard = folder / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"shard-00001\.safetensors was changed"):
        describe(folder)


@pytest.mark.parametrize("content", [b"{", b"\x00\x01", b"[1]", b'{"a": 1}', b"[" * 100_000])
def test_what_others_wrote_is_not_called_damaged(content, tmp_path):
    for name in ("notes.json", "other.sqlite", "archive.zip"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="is not a file of saelab"):
            describe(tmp_path / name)
    with sqlite3.connect(tmp_path / "theirs.sqlite") as connection:
        connection.execute("CREATE TABLE people (name TEXT)")
    connection.close()
    with pytest.raises(ArtifactError, match="is not a file of saelab"):
        describe(tmp_path / "theirs.sqlite")


def test_half_a_surrogate_pair_in_a_file_is_printed_as_its_code(tmp_path, capsys):
    metric = MeasuredMetric(name="fvu", value=0.25, unit="1", definition="…")
    result = EvaluationResult(
        suite="core",
        dictionary_name="half \ud800",
        dictionary_hash="abc",
        settings={},
        made_from={"model": "m"},
        metrics=(metric,),
    )
    write_evaluation_result(tmp_path / "core.json", result)
    assert main(["info", str(tmp_path / "core.json")]) == 0
    assert "half \\ud800" in capsys.readouterr().out
