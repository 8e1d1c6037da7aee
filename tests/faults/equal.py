"""Whether two folders hold the same results: byte for byte, but for what names time and speed."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

DIFFERS = {
    "created": "when it was written",
    "self_hash": "a hash over the time too",
    "seconds": "how long stages took",
    "seconds_per_step": "speed",
    "train_seconds": "speed",
    "tokens_per_second": "speed",
    "item_hashes": "of tables that are compared themselves, and may hold such hashes",
    "peak_memory_gb": "memory of the process",
}
"""JSON keys, in any depth, whose values may differ between two runs of one command, and why."""
DIFFERS_PREFIX = "seconds_"
"""Keys that begin with it are durations too."""
CREATED = r"'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00'"
"""The column of that name in labels, notes and answers, as SQL."""
METADATA = "__metadata__"
LOCKS = ".lock"
"""A crash leaves the file on which a lock was held; the next writer takes it over."""
PAGES = ".html"
"""Pages are drawn from the files beside them, and are only required to be whole."""


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of the content of every file below a folder by its path; links are inputs."""
    return {
        str(path.relative_to(folder)): _hash(path)
        for path in sorted(folder.rglob("*"))
        if not path.is_symlink()
        and path.is_file()
        and path.suffix != LOCKS
        and not _inside_link(path, folder)
    }


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Paths that are missing, left over, or of other content, in words."""
    words = [f"missing: {path}" for path in expected if path not in found]
    words += [f"left over: {path}" for path in found if path not in expected]
    both = (path for path in expected if path in found)
    return words + [f"differs: {path}" for path in both if found[path] != expected[path]]


def _inside_link(path: Path, folder: Path) -> bool:
    return any(parent.is_symlink() for parent in path.relative_to(folder).parents if parent.name)


def _hash(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".json":
        content = _plain(json.loads(content))
    elif path.suffix == ".jsonl":
        content = b"\n".join(_plain(json.loads(line)) for line in content.splitlines())
    elif path.suffix == ".sqlite":
        content = _tables(path)
    elif path.suffix == ".parquet":
        content = _columns(path)
    elif path.suffix == ".safetensors":
        content = _tensors(content)
    elif path.suffix == PAGES:
        content = content[-64:].strip()[-7:]
    return hashlib.sha256(content).hexdigest()


def _plain(content: Any) -> bytes:
    return json.dumps(_without(content), sort_keys=True).encode()


def _without(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            key: _without(value)
            for key, value in content.items()
            if key not in DIFFERS and not key.startswith(DIFFERS_PREFIX)
        }
    return [_without(item) for item in content] if isinstance(content, list) else content


def _tensors(content: bytes) -> bytes:
    """A safetensors file, its header's metadata in a fixed order: the library writes it in any."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    return (
        json.dumps(header | {METADATA: sorted(header.get(METADATA, {}).items())}).encode()
        + (content[start:])
    )


def _columns(path: Path) -> bytes:
    """A table without a comparison's hashes of result files, which hold the time."""
    from pyarrow import parquet

    table = parquet.read_table(path)
    kept = [name for name in table.column_names if not name.endswith("_sha256")]
    return repr((table.schema.names, table.select(kept).to_pydict())).encode()


def _tables(path: Path) -> bytes:
    """The rows of a database; they and JSON in them lose what may differ."""
    digest = hashlib.sha256()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        for line in connection.iterdump():
            line = re.sub(r'"(created|self_hash)": ?"[^"]*"', "", line)
            digest.update(re.sub(CREATED, "", line).encode())
    return digest.digest()
