"""Commands in forked children: a process that has imported everything starts one in milliseconds.

A child runs `saelab.cli.main` in a folder of its own, says what it printed, and can be killed or
starved of files, memory or room.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
HANG = -1000
"""Exit code that stands for a command that had to be ended after its time."""


def die_with_parent() -> None:
    """End this forked process when the one that started it ends, however it does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code; negative: the signal that ended it."""
    text: str
    """What it printed."""
    errors: str
    """What it printed to stderr."""
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def problem(self) -> str | None:
        """What is wrong with the way it ended: anything but success or one line of ours."""
        if self.code == HANG:
            where = [line.strip() for line in self.errors.splitlines() if "File " in line]
            return f"hangs: no end after {self.seconds:.0f} s, at {'; '.join(where[:3])}"
        if "Traceback (most recent call last)" in self.errors:
            return "traceback: " + self.errors.strip().splitlines()[-1][:300]
        if self.code not in (0, 2, 130, 143):
            return f"exit code {self.code}: {self.errors[-300:]}"
        if self.code == 2 and not self.refusal():
            return f"exit code 2 without a line that says why: {self.errors[-300:]}"
        return None

    def refusal(self) -> str:
        """The line in which the command line refuses; empty where it did not."""
        lines = [line for line in self.errors.splitlines() if line.startswith("saelab: ")]
        return lines[-1] if lines else ""


SEED_OF_A_FRESH_PROCESS = 67280421310721
"""Of PyTorch's random numbers, whose state is part of a checkpoint."""


class Child:
    """A command that runs in a forked process.

    Args:
        words: the command line after `saelab`.
        folder: working directory.
        prepare: called in the child before the command, to take something away from it.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None
    ):
        files = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115
        *self._printed, self._modules = files
        self._started = time.monotonic()
        self._outcome: Outcome | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(list(words), folder, prepare)

    def _run(self, words: list[str], folder: Path, prepare: Callable[[], None] | None) -> None:
        code = 1
        try:
            die_with_parent()
            os.chdir(folder)
            for file, descriptor in zip(self._printed, (1, 2), strict=True):
                os.dup2(file.fileno(), descriptor)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            sys.argv = ["saelab", *words]
            # Else the first threads of the child race to make PyTorch's pool again.
            sys.modules["torch"].set_num_threads(1)
            sys.modules["torch"].manual_seed(SEED_OF_A_FRESH_PROCESS)
            faulthandler.enable(sys.stderr)
            if prepare is not None:
                prepare()
            from saelab.cli import main

            code = main(words)
            self._modules.write("\n".join(sys.modules).encode())
            self._modules.flush()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        self._reap(os.WNOHANG)
        return self._outcome is None

    def import_its_modules(self) -> None:
        """Import here what it had to, so that the next ones start with it."""
        self._modules.seek(0)
        for name in self._modules.read().decode().splitlines():
            if name not in sys.modules:
                with suppress(Exception):
                    importlib.import_module(name)

    def kill(self) -> None:
        """End it at once, as a power switch would; no effect on one that has ended."""
        if self.running():
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = 120.0) -> Outcome:
        """Its end; after so many seconds it is ended, and counts as hanging."""
        while self.running():
            if time.monotonic() - self._started > seconds:
                # It says where it is, and dies of it.
                os.kill(self.pid, signal.SIGABRT)
                time.sleep(1.0)
                self.kill()
                self._reap(0)
                assert self._outcome is not None
                taken = self._outcome
                self._outcome = Outcome(HANG, taken.text, taken.errors, taken.seconds)
                break
            time.sleep(0.002)
        assert self._outcome is not None
        return self._outcome

    def _reap(self, options: int) -> None:
        if self._outcome is not None:
            return
        pid, status = os.waitpid(self.pid, options)
        if pid == 0:
            return
        texts = []
        for file in self._printed:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        code = os.waitstatus_to_exitcode(status)
        self._outcome = Outcome(code, texts[0], texts[1], time.monotonic() - self._started)


def run(
    words: Sequence[str],
    folder: Path,
    prepare: Callable[[], None] | None = None,
    seconds: float = 120.0,
) -> Outcome:
    """Run a command to its end."""
    return Child(words, folder, prepare).wait(seconds)


def run_afresh(words: Sequence[str], folder: Path, prepare: Callable[[], None]) -> Outcome:
    """Run a command in a process that has imported nothing yet."""
    program = "import sys; from saelab.cli import main; sys.exit(main(sys.argv[1:]))"
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *words],
        cwd=folder,
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr, time.monotonic() - started)


def type_again(words: Sequence[str], folder: Path, seconds: float = 120.0) -> Outcome:
    """What a person does after a command was cut off: types it again, and where the refusal names
    --resume, adds that."""
    outcome = run(words, folder, seconds=seconds)
    if outcome.code == 2 and "--resume" in outcome.refusal():
        outcome = run([*words, "--resume"], folder, seconds=seconds)
    return outcome
