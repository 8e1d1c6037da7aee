"""A machine that runs out of disk, open files or memory: one line, and the advice in it works."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from saelab.cli import main

TOO_SMALL = (4096, 16384, 40960)
"""Bytes left on the disk: nothing fits, and then a part."""


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, whose size may be set."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: int, *options: str) -> Path:
        given = ",".join([f"size={size}", *options])
        again = ["-o", f"remount,{given}"] if folder.is_mount() else ["-t", "tmpfs", "-o", given]
        done = subprocess.run(
            ["mount", *again, "none", str(folder)], check=False, capture_output=True
        )
        if done.returncode:
            pytest.skip("a disk may not be mounted here")
        return folder

    yield sized
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@pytest.mark.parametrize("left", TOO_SMALL)
@pytest.mark.parametrize("name", ["cache", "train", "synthetic", "eval", "features"])
def test_a_full_disk_is_one_line_whose_advice_works(name, left, made, disk, capsys, monkeypatch):
    out = disk(1 << 20)
    if name == "features":
        subprocess.run(["cp", "-r", made["dictionary"], str(out / "sae")], check=True)
    # Free space is asked for first, and may be gone when it is needed.
    monkeypatch.setattr("saelab.cache.writer.require_free_space", lambda *given: None)
    monkeypatch.setattr("saelab.synthetic.cache.require_free_space", lambda *given: None)
    used = sum(file.stat().st_size // 4096 + 2 for file in out.rglob("*")) * 4096
    out = disk(used + left)
    words = [word.format(out=out) for word in made[name]]
    capsys.readouterr()
    code, lines = main(words), capsys.readouterr().err.splitlines()
    assert code == 2, lines
    said = lines[-1]
    assert "disk full or quota used up" in said or "No space left on device" in said, lines
    assert said.startswith("saelab: ") and "free some space and " in said
    assert not list(out.rglob("*.partial")) and not list(out.rglob(".*.lock"))
    disk(64 << 20)
    for option in ("--resume", "--overwrite"):
        if option in said:
            words.append(option)
    assert main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["cache", "train", "synthetic", "eval", "features"])
def test_a_disk_that_may_only_be_read_is_one_line(name, made, disk, capsys):
    out = disk(8 << 20)
    subprocess.run(["cp", "-r", made["dictionary"], str(out / "sae")], check=True)
    out = disk(8 << 20, "ro")
    assert main([word.format(out=out) for word in made[name]]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written (Read-only file system): write elsewhere" in said


LIMITED = """
import resource, sys
from saelab.cli import main
import torch, transformers
kind, limit = getattr(resource, sys.argv[1]), int(sys.argv[2])
resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
sys.exit(main(sys.argv[3:]))
"""


def limited(kind: int | str, limit: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(kind), str(limit), *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("train", 24), ("features", 24), ("train", 64)])
def test_few_open_files_are_enough_or_one_line(name, limit, made, tmp_path):
    subprocess.run(["cp", "-r", made["dictionary"], str(tmp_path / "sae")], check=True)
    words = [word.format(out=tmp_path) for word in made[name]]
    done = limited("RLIMIT_NOFILE", limit, words)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.returncode == 2 and limit < 64
        said = done.stderr.splitlines()[-1]
        assert "Too many open files" in said or "too many open files" in said, done.stderr


@pytest.mark.slow
def test_little_memory_is_one_line_that_says_what_to_lower(made, tmp_path):
    words = [word.format(out=tmp_path) for word in made["train"]]
    words[words.index("--d-sae") + 1] = "4000000"
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    done = limited("RLIMIT_AS", max(2_000_000_000, now + 500_000_000), words)
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("saelab: out of memory") and "--d-sae" in said
