"""One writer at a time: a lock beside what is written, which names its holder.

The lock is the kernel's, so a crash releases it; the file it is held on is removed at the end and
left over by a crash, which harms nobody.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from saelab.errors import ConfigError

from .files import remove_leftovers

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

logger = logging.getLogger(__name__)


@contextmanager
def writer_lock(target: Path) -> Iterator[None]:
    """Hold the right to write a folder or file while the block runs.

    Args:
        target: what is written; it need not exist yet.

    Raises:
        ConfigError: another process holds it; the error names which.
    """
    folder = lock_file(target).parent
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    descriptor = _acquire(target)
    try:
        # What dead writers left: nobody else writes here now, and living ones' names say so.
        remove_leftovers(target) if target.is_dir() else remove_leftovers(folder, below=False)
        yield
    finally:
        if descriptor is not None:
            # While it is still held: who has opened the file by now sees that it is gone.
            lock_file(target).unlink(missing_ok=True)
            os.close(descriptor)
        # A refused start leaves nothing; a folder in use is not empty.
        with suppress(OSError):
            for parent in made:
                parent.rmdir()


def lock_file(target: Path) -> Path:
    """The file on which the lock of a target is held: a hidden one beside it."""
    target = Path(target).resolve()
    folder = target.parent
    if target.is_dir() and not os.access(folder, os.W_OK):
        folder = target
    return folder / f".{target.name}.lock"


def writer_of(target: Path) -> Literal["alive", "dead", "none", "unknown"]:
    """What became of who last held the lock of a target, without touching the lock.

    Returns:
        "none" where nobody holds it and who held it ended in order; "dead" where the holder was
        killed; "unknown" without locks, or where the holder is of another machine.
    """
    path = lock_file(target)
    if fcntl is None or path.is_symlink():
        return "unknown"
    try:
        with path.open("rb") as file:
            holder = json.loads(file.read(4096))
        if holder["host"] != platform.node() or (process := int(holder["process"])) <= 0:
            return "unknown"
        os.kill(process, 0)
    except FileNotFoundError:
        return "none"
    except ProcessLookupError:
        return "dead"
    except PermissionError:
        return "alive"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "unknown"
    return "alive"


def _acquire(target: Path) -> int | None:
    """An open descriptor that holds the lock; None on systems without locks."""
    if fcntl is None:
        return None
    path = lock_file(target)
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
            raise ConfigError(
                f"{target} cannot be written ({error.strerror}): write elsewhere"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096)
            os.close(descriptor)
            raise ConfigError(
                f"{target} is being written by {_words(holder)}: wait until it has finished, stop "
                "it, or write elsewhere"
            ) from None
        except OSError as error:
            os.close(descriptor)
            logger.warning("%s cannot be locked (%s): start no second writer", path, error.strerror)
            return None
        if _is_still(path, descriptor):
            break
        os.close(descriptor)
    # On a full disk the holder stays unnamed; whether the work fits is for the work to find out.
    with suppress(OSError):
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(_holder()).encode())
    return descriptor


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file was not removed by its former holder between opening and locking."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder() -> dict[str, str | int]:
    command = shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "command": command if len(command) <= 200 else f"{command[:199]}…",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _words(holder: bytes) -> str:
    try:
        return "process {process} on {host} (`{command}`, since {started})".format(
            **json.loads(holder)
        )
    except (ValueError, KeyError, TypeError):
        return "another process"
