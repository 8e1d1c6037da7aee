"""The errors a user can cause.

Every message says what failed, what was given, what was expected and what to do about it. The
command line prints it on one line and exits with code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import errno
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

LONGEST_MESSAGE = 3000
"""Characters of a whole message; what is between its beginning and its end is left out."""
# Longer than any path that people type.
_LONG_WORD = re.compile(r"(\S{60})\S{180,}(\S{20})")
LONGEST_VALUE = 80
"""Characters of a value that a message shows."""
MOST_PROBLEMS = 20
"""Problems that a message lists; the rest are counted."""

_LESS_MEMORY = (
    "lower the batch (--batch-rows, --batch-contexts), the width (--d-sae) or the number of "
    "dictionaries at once, or use another --device"
)
_MORE_ROOM = ("disk full or quota used up", "free some space and give the same command again")
_MORE_FILES = ("too many open files", "raise the limit with `ulimit -n 4096`")
_SCARCE = {
    errno.ENOSPC: _MORE_ROOM,
    errno.EDQUOT: _MORE_ROOM,
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
    errno.ENOMEM: ("out of memory on this machine", _LESS_MEMORY),
}
"""What the machine may lack, by the system's number, and what to do."""
_OS_ERROR = re.compile(r"os error (\d+)")
_NO_ROOM_WORDS = re.compile(r"no space left|quota exceeded|disk is full", re.IGNORECASE)


class SaelabError(Exception):
    """Base of every error that is the interface's business rather than a bug.

    What a message quotes of a file is cut here, since a file can hold a value of any length.
    """

    def __init__(self, message: str):
        message = _LONG_WORD.sub(r"\1…\2", message)
        if len(message) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} … {message[-half:]}"
        super().__init__(message)


class ConfigError(SaelabError, ValueError):
    """Settings that do not fit together; `problems` lists every one of them.

    Also a ValueError, so that pydantic collects it with the other problems of a config.
    """

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        listed = self.problems[:MOST_PROBLEMS]
        if len(self.problems) > len(listed):
            listed = [*listed, f"and {len(self.problems) - len(listed):,} more"]
        super().__init__("; ".join(listed))


class ModelError(SaelabError):
    """An unknown model or hook point, or a model that cannot do what is asked."""


class TextError(SaelabError):
    """No text, too little text, or text that cannot be read."""


class ArtifactError(SaelabError):
    """A file of saelab's that is missing, damaged, foreign, or from a newer version."""


class ActivationError(SaelabError):
    """Activations that cannot be used: not finite, of the wrong width or the wrong origin."""


class ResourceError(SaelabError):
    """The machine lacks something: disk space, memory, a device, a network."""


class Stopped(SaelabError):
    """A signal asked the run to stop; the work so far is saved and can be resumed.

    `signal_name` says which signal: "SIGINT" (Ctrl-C) or "SIGTERM".
    """

    def __init__(self, message: str, signal_name: str | None = None):
        self.signal_name = signal_name or "SIGINT"
        super().__init__(message)


def out_of_memory(error: BaseException) -> ResourceError | None:
    """What to tell a user whose command ran out of memory; None for any other error.

    Torch is not imported for it: on a GPU its error has a special class, on the CPU only a message.
    """
    text = str(error)
    by_torch = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError"
        or any(part in text for part in ("can't allocate memory", "not enough memory", "bad_alloc"))
    )
    if not (by_torch or isinstance(error, MemoryError)):
        return None
    where = "the GPU" if type(error).__name__ == "OutOfMemoryError" else "this machine"
    reason = text.splitlines()[0].split(": ")[-1] if text else "no more could be allocated"
    return ResourceError(f"out of memory on {where} ({reason}): {_LESS_MEMORY}")


def lacking(error: BaseException) -> int | None:
    """Of which of `_SCARCE` the machine ran out, as a number of the system; None for any other.

    Libraries report it as errors of their own, in which only the system's words say so.
    """
    numbers = set(map(int, _OS_ERROR.findall(str(error))))
    if isinstance(error, OSError):
        numbers.add(error.errno or 0)
    if _NO_ROOM_WORDS.search(str(error)):
        numbers.add(errno.ENOSPC)
    return next((number for number in _SCARCE if number in numbers), None)


def resource_problem(error: BaseException) -> ResourceError | None:
    """What to tell a user whose machine ran out of memory, open files or disk; None for any other
    error."""
    memory = out_of_memory(error)
    number = lacking(error)
    if memory is not None or number is None:
        return memory
    what, advice = _SCARCE[number]
    if isinstance(error, OSError) and error.filename is not None:
        what = f"cannot use {error.filename}: {error.strerror}"
    return ResourceError(f"{what}: {advice}")


def shown(value: Any) -> str:
    """A value as a message quotes it: its `repr`, cut short, however large the value is.

    Example:
        >>> shown("topp"), len(shown("x" * 1_000_000)) <= LONGEST_VALUE
        ("'topp'", True)
    """
    text = _CUTTING.repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


class _Cutting(reprlib.Repr):
    """Looks at a few items of a few levels, so that a bomb of aliases is not unfolded."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = LONGEST_VALUE

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002 - as reprlib calls it
        # Python refuses to write an integer of more than 4,300 digits.
        return repr(x) if x.bit_length() <= 256 else f"an integer of {x.bit_length():,} bits"


_CUTTING = _Cutting()


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic of a library written in Rust, which is no `Exception`, into a RuntimeError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"a library failed inside: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, or else its class, for a message of one line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def did_you_mean(given: str, known: Iterable[str], limit: int = 3) -> str:
    """A clause naming the nearest known names, or all of them where there are few.

    Example:
        >>> did_you_mean("topp", ["topk", "relu", "gated"])
        "did you mean 'topk'?"
    """
    known = list(known)
    given = given[:LONGEST_VALUE]
    near = get_close_matches(given, known, n=limit, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    if len(known) <= 12:
        return "known: " + ", ".join(sorted(known))
    return f"nothing similar among {len(known)} known names"
