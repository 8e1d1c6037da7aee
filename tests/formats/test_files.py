"""Atomic writing: what survives a crash, and what a full disk is told as."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import torch

from saelab.errors import ResourceError
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
        pytest.raises(ResourceError, match=r"disk full or quota used up .*a\.bin.*--resume"),
        files.atomic_path(path) as temporary,
    ):
        temporary.write_bytes(b"half")
        raise OSError(number, os.strerror(number))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("message", ["No space left on device", "Disk quota exceeded"])
def test_no_room_left_as_safetensors_says_it(tmp_path, monkeypatch, message):
    import safetensors.torch

    def full(*given, **named):
        raise safetensors.SafetensorError(f'IoError(Os {{ code: 0, message: "{message}" }})')

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ResourceError, match="disk full or quota used up"):
        files.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
