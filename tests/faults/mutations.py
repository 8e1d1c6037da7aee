"""Damaged artifacts, read by everything that reads them: as before, or refused."""

from __future__ import annotations

import os
import random
import resource
import selectors
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import Artifact, digest
from damage import choose, damage
from trials import die_with_parent
from world import World

SECONDS = 5.0
"""A reader that computes for longer hangs, and so does one that is silent four times as long."""
MEMORY = 16 << 30
LIKE_PAGES = ("*.html", "*.partial", "*.lock")
TOLD = ("not checked", "were built", "cannot be read", "was saved again", "left out")
"""Words by which `saelab info` says that something was not or could not be vouched for."""


def mutate(
    world: World, artifact: Artifact, work: Path, count: int, seed: str
) -> tuple[Counter[str], list[dict[str, str]]]:
    """Damage copies of an artifact and read them.

    Returns:
        How many were refused, read as before, or read otherwise with a word about it; and the
        faults: silently accepted, traceback, hang, crash.
    """
    counts: Counter[str] = Counter()
    faults = []
    done = 0
    while done < count:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _serve(world, artifact, work, range(done, count), seed, write)
        os.close(write)
        for line in _lines(read):
            verdict, _, words = line.partition("\t")
            if verdict in ("refused", "as before", "told"):
                counts[verdict] += 1
            else:
                faults.append({"what": verdict, "how": words})
            done += 1
        os.close(read)
        if _ended(pid) != 0:
            faults.append({"what": "hang or crash", "how": f"{artifact.kind}, {seed}/{done}"})
            done += 1
    return counts, faults


def _ended(pid: int) -> int:
    """Exit code of a reader that has said its last word, or hangs and is ended."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _lines(descriptor: int) -> Any:
    """Lines from a pipe until it is closed or silent for too long."""
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(4 * SECONDS):
            block = os.read(descriptor, 1 << 16)
            if not block:
                return
            buffer += block
            *complete, buffer = buffer.split(b"\n")
            yield from (line.decode() for line in complete)


def _serve(
    world: World, artifact: Artifact, work: Path, indices: Sequence[int], seed: str, out: int
) -> None:
    """In a process of its own: a line per damaged copy."""
    try:
        die_with_parent()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        source = world.result(artifact.of) / artifact.folder
        other = world.result(artifact.of) / artifact.other if artifact.other else None
        signal.signal(signal.SIGPROF, _hang)
        reader = _Reader(artifact, source, work / "copy" / artifact.folder)
        for index in indices:
            line = reader.trial(f"{seed}/{index}", other)
            os.write(out, (" ".join(line.split("\n")) + "\n").encode(errors="replace"))
    except BaseException as error:
        os.write(out, f"crash\t{seed}: {error!r:.500}\n".encode())
    finally:
        os._exit(0)


class _HangError(BaseException):
    """A reader took too long."""


def _hang(*_: Any) -> None:
    raise _HangError(f"no end after {SECONDS:.0f} s")


class _Reader:
    """Reads an artifact in one place, whole and damaged."""

    def __init__(self, artifact: Artifact, source: Path, place: Path):
        self.artifact, self.source, self.place = artifact, source, place
        self.files = [
            file.relative_to(source)
            for pattern in artifact.files.split()
            for file in sorted(source.glob(pattern))
        ]
        assert self.files, artifact
        self._copy()
        self.lines, self.content = self._read()

    def trial(self, seed: str, other: Path | None) -> str:
        """Damage one file and read; verdict, tab, what was done."""
        chance = random.Random(seed)
        self._copy()
        name = chance.choice(self.files)
        how = choose(chance, self.artifact.without)
        how = damage(self.place / name, how, chance, None if other is None else other / name)
        words = f"{self.artifact.kind} {name}: {how} (seed {seed})"
        from saelab.errors import SaelabError

        refused, told, content = False, False, self.content
        for part in (self._describe, self._content):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                found = part()
                if part == self._content:
                    content = found
                else:
                    told = found != self.lines and any(w in line for line in found for w in TOLD)
            except (SaelabError, OSError) as error:
                refused = True
                if not str(error).strip():
                    return f"refused without a word\t{words}"
            except _HangError as error:
                return f"hang\t{words}: {error}"
            except BaseException as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(at.filename).name}:{at.lineno}"
                return f"traceback\t{words}: {type(error).__name__}: {str(error)[:200]} at {where}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        if content != self.content:
            always = any("not checked" in line for line in self.lines)
            return f"told\t{words}" if told or always else f"silently accepted\t{words}"
        return f"{'refused' if refused else 'as before'}\t{words}"

    def _read(self) -> tuple[list[str], str]:
        return self._describe(), self._content()

    def _describe(self) -> list[str]:
        from saelab.commands.info import describe

        return describe(self.place / self.files[0])

    def _content(self) -> str:
        return digest(self.artifact.read(self.place))

    def _copy(self) -> None:
        """A fresh copy in which files are other names of the whole ones."""
        if self.place.exists():
            shutil.rmtree(self.place)
        shutil.copytree(
            self.source,
            self.place,
            copy_function=os.link,
            symlinks=True,
            ignore=shutil.ignore_patterns(*LIKE_PAGES),
        )
