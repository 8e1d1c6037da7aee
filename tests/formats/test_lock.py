"""The writer's lock: one holder at a time, named to the second, released by a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from saelab.errors import ConfigError
from saelab.formats.files import temporary_name
from saelab.formats.lock import lock_file, writer_lock

HOLD = """
import sys, time
from pathlib import Path
from saelab.formats.lock import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_told_who_holds_it(tmp_path, holder):
    with pytest.raises(ConfigError) as caught, writer_lock(tmp_path / "out"):
        pytest.fail("two writers")
    words = str(caught.value)
    assert f"process {holder.pid} on " in words and "\n" not in words.split("(")[0]
    assert "is being written by" in words and "wait until it has finished" in words
    with writer_lock(tmp_path / "other"):
        pass


def test_a_crash_releases_it(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock_file(tmp_path / "out").exists()
    with writer_lock(tmp_path / "out"):
        assert str(os.getpid()) in lock_file(tmp_path / "out").read_text()
    assert not lock_file(tmp_path / "out").exists()


def test_nothing_is_left_in_or_beside_the_folder(tmp_path):
    with writer_lock(tmp_path / "new" / "out"):
        assert not (tmp_path / "new" / "out").exists()
    assert list(tmp_path.iterdir()) == []
    with writer_lock(tmp_path / "new" / "out"):
        (tmp_path / "new" / "out").mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "out"]


def test_whoever_holds_it_removes_what_dead_writers_left(tmp_path, holder):
    """Of a folder all that is in it, of a file what lies beside it; what lives is left alone."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder, own = tmp_path / "sae", temporary_name("a.json")
    of_dead = own.replace(f"-{os.getpid()}.", f"-{dead.pid}.")
    of_living = own.replace(f"-{os.getpid()}.", f"-{holder.pid}.")
    (folder / "evals").mkdir(parents=True)
    for name in (of_dead, of_living, own):
        for place in (folder, folder / "evals"):
            (place / name).write_text("half")
    with writer_lock(folder / "features.sqlite"):
        assert not (folder / of_dead).exists()
        assert (folder / "evals" / of_dead).exists()
    with writer_lock(folder):
        assert not (folder / "evals" / of_dead).exists()
    assert len(list(folder.rglob("*.partial"))) == 4


def test_many_processes_never_hold_it_together(tmp_path):
    program = """
import sys, time
from pathlib import Path
from saelab.errors import ConfigError
from saelab.formats.lock import writer_lock
out = Path(sys.argv[1])
for _ in range(40):
    try:
        with writer_lock(out):
            (out.parent / "inside").touch(exist_ok=False)
            time.sleep(0.001)
            (out.parent / "inside").unlink()
    except ConfigError:
        time.sleep(0.001)
"""
    started = time.monotonic()
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "out")]) for _ in range(4)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert time.monotonic() - started < 60
