"""Atomic writing: what survives a crash, and what a full disk is told as."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saelab.errors import ArtifactError, ResourceError
from saelab.formats import files


@pytest.fixture
def flushed(monkeypatch):
    """What was flushed to disk: "file" or "folder", with the folder's files at that moment."""
    seen = []
    fsync = os.fsync

    def record(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        names = sorted(os.listdir(descriptor)) if is_folder else None  # noqa: PTH208
        seen.append(("folder", names) if is_folder else ("file", None))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return seen


@pytest.mark.skipif(os.name != "posix", reason="other systems cannot flush a folder")
def test_the_folder_is_flushed_after_the_rename(tmp_path, flushed):
    files.write_bytes(tmp_path / "a.bin", b"content")
    assert flushed == [("file", None), ("folder", ["a.bin"])]


@pytest.mark.skipif(os.name != "posix", reason="other systems cannot flush a folder")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EINVAL:  # a file system that does not offer it
        files.write_bytes(tmp_path / "a.bin", b"content")
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            files.write_bytes(tmp_path / "a.bin", b"content")
    assert (tmp_path / "a.bin").read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_left_is_a_resource_error_and_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")
    with (
        files.remedy_when_full("go on with --resume"),
        pytest.raises(ResourceError, match=r"disk full or quota used up .*a\.bin.*--resume"),
        files.atomic_path(path) as temporary,
    ):
        temporary.write_bytes(b"half")
        raise OSError(number, os.strerror(number))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems list mappings elsewhere")
def test_a_tensor_let_go_takes_its_part_of_the_file_out_of_memory(tmp_path):
    path = tmp_path / "two.safetensors"
    files.write_tensors(path, {"a": torch.ones(50_000), "b": torch.ones(50_000)})
    tensors = files.read_tensors(path)

    def n_mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    assert n_mappings() == 2
    del tensors["a"]
    assert n_mappings() == 1 and bool((tensors["b"] == 1).all())


@pytest.mark.parametrize("message", ["No space left on device", "Disk quota exceeded"])
def test_no_room_left_as_safetensors_says_it(tmp_path, monkeypatch, message):
    import safetensors.torch

    def full(*given, **named):
        raise safetensors.SafetensorError(f'IoError(Os {{ code: 0, message: "{message}" }})')

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ResourceError, match="disk full or quota used up"):
        files.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})


def test_only_the_temporary_files_of_dead_writers_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = tmp_path / "sub" / files.temporary_name("a.json")
    gone = own.with_name(own.name.replace(f"-{os.getpid()}.", f"-{dead.pid}."))
    older = tmp_path / f"run.json.{dead.pid}.partial"
    elsewhere = tmp_path / f"a.json.another-machine-{dead.pid}.partial"
    nobody = tmp_path / "mine.partial"
    for path in (own, gone, older, elsewhere, nobody):
        files.write_bytes(path, b"half")
    files.remove_leftovers(tmp_path)
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {own, elsewhere, nobody}


def test_the_remedy_for_a_full_disk_is_that_of_the_caller(tmp_path):
    def fill():
        with files.atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"half")
            raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(ResourceError, match=r"free some space and give the same command again"):
        fill()
    with (
        files.remedy_when_full("go on with --resume"),
        pytest.raises(ResourceError, match=r"free some space and go on with --resume"),
    ):
        fill()


def test_a_file_that_is_no_json_is_one_line(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"[" * 100_000, b"1" * 5000, b"\xff\xfe{", b"{"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="is not valid JSON"):
            files.read_json(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArtifactError, match="a JSON file was expected"):
        files.read_json(path)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path, exists):
    folder = tmp_path / "exported"
    if exists:
        folder.mkdir()
    with pytest.raises(KeyError), files.whole_folder(folder) as half:
        (half / "a").write_text("1")
        raise KeyError
    assert not list(tmp_path.rglob("a")) and folder.exists() == exists
    with files.whole_folder(folder) as half:
        (half / "below").mkdir()
        (half / "below" / "a").write_text("1")
        assert not (folder / "below").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["exported", "below", "a"]
    with files.whole_folder(folder) as whole:
        assert whole == folder
