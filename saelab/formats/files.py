"""Reading and writing files that must survive a kill at any moment.

Everything is written under a temporary name in the same folder, flushed to disk and renamed into
place, so a reader sees the old file or the new one and never half of one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from saelab.errors import (
    ArtifactError,
    ResourceError,
    SaelabError,
    first_line,
    lacking,
    out_of_memory,
    panics_as_errors,
    resource_problem,
)

TEMPORARY_SUFFIX = ".partial"
_REMEDY: ContextVar[str | Callable[[], str] | None] = ContextVar("remedy", default=None)


@contextmanager
def remedy_when_full(words: str | Callable[[], str]) -> Iterator[None]:
    """What a full disk tells the user to do inside the block, such as "go on with --resume".

    Words that depend on what is there by then are asked for when the disk is full. A command that
    runs others has the word: it is the one that was typed.
    """
    token = _REMEDY.set(_REMEDY.get() or words)
    try:
        yield
    finally:
        _REMEDY.reset(token)


@contextmanager
def full_disk_said(path: Path) -> Iterator[None]:
    """Turn what systems and libraries say of a full disk into one sentence with the remedy.

    Raises:
        ResourceError: the disk is full, or the user's share of it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SaelabError) or lacking(error) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = _REMEDY.get() or "give the same command again"
        remedy = remedy if isinstance(remedy, str) else remedy()
        raise ResourceError(
            f"disk full or quota used up while writing {path}: free some space and {remedy}; what "
            "was finished before is intact"
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it becomes `path`, on failure it is removed.

    Raises:
        ResourceError: the disk is full, or the user's share of it.
    """
    temporary = path.with_name(temporary_name(path.name))
    with full_disk_said(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
            _flush_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `folder` when everything is in it.

    A folder that holds something already is yielded itself: its files are replaced one by one.

    Raises:
        NotADirectoryError: it is a file.
        ResourceError: the disk is full, or the user's share of it.
    """
    exists = folder.exists()
    if exists and any(folder.iterdir()):
        yield folder
        return
    # An empty folder may be somebody's working directory, or a link: it is filled, not replaced.
    beside = folder / "whole" if exists else folder
    temporary = beside.with_name(temporary_name(beside.name))
    with full_disk_said(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if exists:
                for entry in temporary.iterdir():
                    entry.replace(folder / entry.name)
                temporary.rmdir()
            else:
                temporary.replace(folder)
            _flush_folder(beside.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def temporary_name(name: str) -> str:
    """The name under which this process writes a file or folder before it is complete."""
    return f"{name}.{_host()}-{os.getpid()}{TEMPORARY_SUFFIX}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node())


def _is_abandoned(temporary: Path) -> bool:
    """Whether the process that wrote under a temporary name is known to be dead.

    What another machine writes is never known to be; names without a machine are of this one.
    """
    host, _, process = temporary.stem.rpartition(".")[2].rpartition("-")
    if not process.isdecimal() or (host and host != _host()):
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def _flush_folder(folder: Path) -> None:
    """Make a rename in this folder last: it is an entry of the folder, which is flushed apart."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder, and some folders may not be opened.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; numbers that JSON cannot hold (NaN, infinity) are refused."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """What a JSON file of ours holds."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def file_problem(path: Path, what: str) -> str | None:
    """What keeps a path from being read as a file, in words; None where it is a plain file.

    Asked before a file is opened: opening a pipe waits for ever, and a device has no end.

    Args:
        path: the path.
        what: the file that is expected, as in "JSON file".
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} does not exist"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISREG(mode):
        return None
    held = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device or socket"
    return f"{path} is a {held}; a {what} was expected"


def require_file(path: Path, what: str = "file") -> None:
    """Refuse what is no plain file, without opening it.

    Raises:
        ArtifactError: it is missing, a folder, a pipe or a device.
    """
    problem = file_problem(path, what)
    if problem is not None:
        raise ArtifactError(problem)


@contextmanager
def odd_content_is_damage(path: Path) -> Iterator[None]:
    """What a reader stumbles over inside the block, as an error that names the file.

    For readers of many fields: a file that was edited and sealed again can hold anything anywhere.

    Args:
        path: the file or folder that is read.

    Raises:
        ArtifactError: a value is missing, or of a type or size that no writer of saelab's gives it.
    """
    try:
        yield
    except SaelabError:
        raise
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ArtifactError(f"{path} was damaged or edited: a name in it is too long") from error
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as e:
        if out_of_memory(e) is not None:
            raise
        raise ArtifactError(
            f"{path} was damaged or edited: it holds what saelab never writes "
            f"({type(e).__name__}: {first_line(e)})"
        ) from e


DEEPEST_JSON = 100
"""Levels of lists and objects in a file; what walks them later calls itself for each."""
LONGEST_INTEGER = 300
"""Digits of an integer; a longer one does not even fit a float."""


def parse_json(text: str | bytes) -> Any:
    """JSON that others may have written, as Python values.

    Raises:
        ValueError: in short words, whatever is wrong: no JSON, no UTF-8, nested too deeply, or an
            integer too long.
    """
    try:
        plain = text if isinstance(text, str) else text.decode("utf-8")
        content = json.loads(plain, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(DEEPEST_JSON):
        if not level:
            return content
        parts = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for part in parts for inner in part if isinstance(inner, dict | list)]
    raise ValueError(f"it is nested more than {DEEPEST_JSON} levels deep")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"it holds an integer of {len(digits):,} digits")
    return int(digits)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ArtifactError: the file is missing, no plain file, or is not JSON.
    """
    require_file(path, "JSON file")
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ArtifactError(
            f"{path} is not valid JSON ({first_line(error)}): it was damaged or edited"
        ) from None


TENSOR_SEAL = "saelab_sha256"
"""Key, in the metadata of a safetensors file, of the hash of its tensors and other metadata."""
SEALED = "sealed"


def seal_tensors(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a safetensors file with a hash over it and over the tensors.

    Args:
        tensors: of torch or numpy.
        metadata: anything else to say of them.
    """
    import numpy as np

    rest = {key: value for key, value in metadata.items() if key != TENSOR_SEAL}
    # A second mark: with one of the two damaged, the file is not taken for one without a hash.
    rest[SEALED] = "yes"
    digest = hashlib.sha256(hash_of(rest).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        kind = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(hash_of(kind).encode())
        if not isinstance(tensor, np.ndarray):
            import torch

            tensor = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return {**rest, TENSOR_SEAL: digest.hexdigest()}


def is_sealed_tensors(path: Path) -> bool:
    """Whether a safetensors file holds a hash of itself."""
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        return TENSOR_SEAL in (file.metadata() or {})


def write_tensors(
    path: Path,
    tensors: dict[str, Any],
    metadata: dict[str, str] | None = None,
    *,
    sealed: bool = False,
) -> None:
    """Write a dict of torch tensors as safetensors, atomically.

    Args:
        path: the file.
        tensors: by name.
        metadata: words on them.
        sealed: add a hash of it all, which `read_tensors` checks; for files that no manifest names.
    """
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    if sealed:
        metadata = seal_tensors(contiguous, metadata or {})
    with atomic_path(path) as temporary:
        save_file(contiguous, str(temporary), metadata=metadata)


def read_tensors(path: Path) -> dict[str, Any]:
    """Read every tensor of a safetensors file, and check its hash where it holds one.

    Raises:
        ArtifactError: the file is missing, truncated, of another format, or was changed.
    """
    from safetensors import SafetensorError, safe_open

    require_file(path, "safetensors file")
    try:
        with panics_as_errors():
            with safe_open(str(path), framework="pt") as file:
                names, metadata = file.keys(), file.metadata() or {}
            tensors = {}
            for name in names:
                # A mapping of its own, so that what was read of one tensor goes with it.
                with safe_open(str(path), framework="pt") as file:
                    tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise unreadable_tensors(path, error) from None
    if {TENSOR_SEAL, SEALED} & set(metadata) and seal_tensors(tensors, metadata) != metadata:
        raise ArtifactError(
            f"{path} was changed since it was written (its SHA-256 differs): restore it from a "
            "copy, or make it again"
        )
    return tensors


def unreadable_tensors(path: Path, error: Exception, remedy: str = "") -> SaelabError:
    """What to say of a safetensors file that cannot be read: it is damaged, or the machine lacks
    memory or open files."""
    words = f"{path} is not a readable safetensors file ({error}){remedy and ': '}{remedy}"
    return resource_problem(error) or ArtifactError(words)


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's content as hex; `progress` is told the bytes of each block read."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def hash_of(content: Any) -> str:
    """SHA-256 of a JSON-like value with sorted keys: equal values have equal hashes."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def require_free_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to start work that cannot fit on the disk.

    Raises:
        ResourceError: fewer than `needed` bytes (plus 5 %) are free on the disk of `folder`.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed * 1.05:
        raise ResourceError(
            f"{what} needs {needed / 1e9:.2f} GB in {folder} but {free / 1e9:.2f} GB are free: "
            "free some space, choose another folder, or ask for fewer tokens"
        )


def remove_leftovers(folder: Path, *, below: bool = True) -> None:
    """Delete the temporary files and folders in a folder whose writers are dead.

    Args:
        folder: where; it need not exist.
        below: whether to look into its folders too.
    """
    if not folder.is_dir():
        return
    pattern = f"*{TEMPORARY_SUFFIX}"
    for leftover in folder.rglob(pattern) if below else folder.glob(pattern):
        if not _is_abandoned(leftover):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
