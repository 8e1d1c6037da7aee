"""Commands on a machine that lacks something: room on the disk, the right to write, files, memory.

Each ends well or in one line; when there is enough again, the command typed again leaves what an
undisturbed one does. Room and rights are taken away by mounts that only this process sees.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kills import what_is_wrong
from trials import run, run_afresh, type_again
from world import Command, World

NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000
DISK = 512 << 20
FILES = 64
MEMORY = 2 << 30
LITTLE_MEMORY = "2 GB of address space"
Prepare = Callable[[], None] | None


def mount_disk(folder: Path) -> bool:
    """Put a small disk at a folder, for this process and its children; whether that is allowed."""
    user, flags = os.getuid(), NEW_MOUNTS if os.getuid() == 0 else NEW_MOUNTS | NEW_USERS
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        _mount("--make-rprivate", "/")
        _mount("-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def limit_trial(world: World, command: Command, disk: Path, seed: str, lack: str) -> dict[str, Any]:
    """Run a command that lacks something; where it is refused, give that back and type it again.

    Args:
        world: commands and what they should leave.
        command: one of them.
        disk: folder that `mount_disk` was called with.
        seed: decides how much room is left.
        lack: a key of `LACKS`.
    """
    folder = world.prepare(command, disk / "trial")
    with LACKS[lack](world, command, folder, random.Random(seed)) as prepare:
        # Forked processes hold more than 2 GB of addresses from the start.
        start = run_afresh if lack == LITTLE_MEMORY else run
        outcome = start(command.words, folder, prepare)
    problem, refused = outcome.problem(), outcome.code != 0
    if problem is None:
        last = type_again(command.words, folder) if refused else outcome
        problem = what_is_wrong(world, command, folder, last)
    return {"ended": "refused" if refused else "well", "fault": problem}


@contextmanager
def _full_disk(
    world: World, command: Command, folder: Path, chance: random.Random
) -> Iterator[Prepare]:
    """Room for a part of what the command writes."""
    used = _bytes(world.result(command.name)) - _bytes(folder)
    ballast = folder.parent / "ballast"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - int(used * chance.random())))
    yield None
    ballast.unlink()


@contextmanager
def _read_only(
    world: World, command: Command, folder: Path, chance: random.Random
) -> Iterator[Prepare]:
    _mount("--bind", str(folder), str(folder))
    _mount("-o", "remount,bind,ro", str(folder))
    yield None
    subprocess.run(["umount", str(folder)], check=True)


def _limited(what: int, amount: int) -> Callable[..., Any]:
    @contextmanager
    def limit(*_: Any) -> Iterator[Prepare]:
        yield lambda: resource.setrlimit(what, (amount, amount))

    return limit


LACKS: dict[str, Callable[..., Any]] = {
    "a disk that fills up": _full_disk,
    "a folder that may only be read": _read_only,
    f"{FILES} open files": _limited(resource.RLIMIT_NOFILE, FILES),
    LITTLE_MEMORY: _limited(resource.RLIMIT_AS, MEMORY),
}
"""By name, what takes something away from a command while it runs."""


def _bytes(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)
