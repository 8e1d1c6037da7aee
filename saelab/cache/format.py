"""The activation cache on disk: names, the manifest's fields, and a shard's tensors.

A cache is a folder with `manifest.json` and `shard-00000.safetensors` and so on. A shard holds the
kept rows of a fixed number of contexts in reading order, and float64 sums of them, so that totals
are merged in shard order and come out the same however often the writing was interrupted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.errors import ArtifactError
from saelab.formats.files import hash_of, sha256_of, unreadable_tensors
from saelab.formats.manifest import NOT_CONTENT, new_manifest, read_manifest
from saelab.progress import progress_bar

KIND = "activation_cache"
MANIFEST_NAME = "manifest.json"
SAMPLED_SHARDS = 4
"""Shards between the first and the last whose hash every start checks."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# One metadata key: safetensors writes several in an order that differs between processes.
METADATA_KEY = "saelab"
ADOPTED_KEY = "adopted"
"""Where `made_from` keeps which files the rows are of, of a cache of activations from elsewhere."""
HELD_OUT = "held_out"
"""Folder beside the caches of adopted training rows that holds those of the held-out ones."""

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "config": dict,
    "made_from": dict,
    "hook_point": str,
    "d_in": int,
    "dtype": str,
    "has_gradients": bool,
    "context_length": int,
    "row_rule": dict,
    "norm_ceiling": (int, float, type(None)),
    "shards": list,
}
_REQUIRED_WHEN_COMPLETE: dict[str, type | tuple[type, ...]] = {
    "n_rows": int,
    "excluded": dict,
    "statistics": dict,
    "content_hash": str,
}
_REMEDY = "restore the file, or make the cache again with --overwrite"


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """What the manifest records of one shard."""

    file: str
    contexts: int
    rows: int
    bytes: int
    sha256: str
    excluded: dict[str, int]


def shard_entries(manifest: dict[str, Any], path: Path) -> list[ShardEntry]:
    """The manifest's shards, checked.

    Raises:
        ArtifactError: an entry lacks a field or names a file that is not that shard's.
    """
    names = {f.name for f in fields(ShardEntry)}
    entries = []
    for index, content in enumerate(manifest["shards"]):
        if not isinstance(content, dict) or set(content) != names:
            raise ArtifactError(f"{path} describes shard {index} wrongly: it was damaged or edited")
        if content["file"] != shard_name(index):
            raise ArtifactError(
                f"{path} names {content['file']!r} as shard {index}; "
                f"{shard_name(index)!r} was expected"
            )
        entries.append(ShardEntry(**content))
    return entries


def how_to_finish(manifest: dict[str, Any]) -> str:
    """What to do about a cache whose writing was cut short."""
    if manifest.get("resumable", True):
        return "repeat the command that started it with --resume"
    return "repeat the command that started it with --overwrite"


def content_hash(manifest: dict[str, Any]) -> str:
    """Hash of what a cache holds and of what it was made from, shards' hashes included."""
    return hash_of({key: value for key, value in manifest.items() if key not in NOT_CONTENT})


def origin_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a cache was made from; the BOS token of older ones stands with their tokenizer."""
    tokenizer = manifest.get("tokenizer") or {}
    older = {name: tokenizer[name] for name in ("bos_id",) if name in tokenizer}
    return older | manifest["made_from"]


def new_cache_manifest(
    made_from: dict[str, Any],
    *,
    seed: int,
    config: Any,
    d_in: int,
    dtype: str,
    text: dict[str, Any],
    bos_rule: str,
    n_tokens_requested: int | None,
    gradient_of: str | None = None,
    tokenizer: dict[str, Any] | None = None,
    calibration: dict[str, Any] | None = None,
    resumable: bool = True,
) -> dict[str, Any]:
    """The manifest of a cache that has no shard yet.

    Args:
        made_from: provenance of its rows, which says where and how they were taken.
        text: what the text was, with its content hash.
        bos_rule: how contexts start.
        gradient_of: what gradients are of; None: the cache holds none.
        calibration: what set the norm ceiling; None: nothing did.
        resumable: whether what an interrupted run leaves can be gone on with.
    """
    manifest = new_manifest(KIND, seed=seed, config=config, made_from=made_from)
    return manifest | {
        "status": "writing",
        **({} if resumable else {"resumable": False}),
        "hook_point": made_from["hook_point"],
        "d_in": d_in,
        "dtype": dtype,
        "has_gradients": gradient_of is not None,
        "gradient_of": gradient_of,
        "tokenizer": tokenizer,
        "bos_rule": bos_rule,
        "text": text,
        "context_length": made_from["context_length"],
        "row_rule": made_from["row_rule"],
        "calibration": calibration,
        "norm_ceiling": made_from["norm_ceiling"],
        "n_tokens_requested": n_tokens_requested,
        "shards": [],
    }


def read_cache_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a cache, finished or not, and check its fields.

    Raises:
        ArtifactError: missing, damaged, edited, of another kind, or from a newer saelab.
    """
    manifest = read_manifest(path, KIND)
    complete = manifest.get("status") == "complete"
    required = _REQUIRED | _REQUIRED_WHEN_COMPLETE if complete else _REQUIRED
    wrong = [
        name
        for name, kind in required.items()
        if name not in manifest or not isinstance(manifest[name], kind)
    ]
    if wrong or manifest["dtype"] not in DTYPES:
        raise ArtifactError(
            f"{path} lacks or garbles {', '.join(wrong) or 'dtype'}: it was damaged or edited; "
            "make the cache again with --overwrite"
        )
    if complete and manifest["content_hash"] != content_hash(manifest):
        raise ArtifactError(
            f"{path} does not match its own content_hash: it was damaged or edited; "
            "make the cache again with --overwrite"
        )
    return manifest


def shard_layout(
    manifest: dict[str, Any], rows: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor that a shard of `rows` rows must hold."""
    d_in, dtype = manifest["d_in"], DTYPES[manifest["dtype"]]
    layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "activations": ((rows, d_in), dtype),
        "tokens": ((rows,), torch.int32),
        "sequence": ((rows,), torch.int64),
        "position": ((rows,), torch.int32),
        "sum": ((d_in,), torch.float64),
        "sum_squared_norm": ((1,), torch.float64),
    }
    if manifest["has_gradients"]:
        layout["gradients"] = ((rows, d_in), dtype)
        layout["sum_squared_gradient_norm"] = ((1,), torch.float64)
    return layout


def row_bytes(d_in: int, dtype: str, gradients: bool) -> int:
    """Bytes that one row takes in a shard, its token and its position in the text included."""
    origin = torch.int32.itemsize + torch.int64.itemsize + torch.int32.itemsize
    return d_in * DTYPES[dtype].itemsize * (2 if gradients else 1) + origin


def map_shard(path: Path, manifest: dict[str, Any], entry: ShardEntry) -> dict[str, Tensor]:
    """Map a shard's tensors into memory; bytes are read from disk when rows are touched.

    Raises:
        ArtifactError: the file is missing, of another size, unreadable, or of other shapes or
            dtypes than the manifest says.
    """
    from safetensors import SafetensorError, safe_open

    check_size(path, entry)
    try:
        with safe_open(str(path), framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable_tensors(path, error, _REMEDY) from None
    expected = shard_layout(manifest, entry.rows)
    held = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if held != expected:
        wrong = sorted(n for n in expected | held if expected.get(n) != held.get(n))
        name = wrong[0]
        raise ArtifactError(
            f"{path} holds {name} as {held.get(name, 'nothing')}; "
            f"{expected.get(name, 'nothing')} was expected: it belongs to another cache; {_REMEDY}"
        )
    return tensors


def check_size(path: Path, entry: ShardEntry) -> None:
    """Check that a shard is there and has the recorded size.

    Raises:
        ArtifactError: it is missing or has another size.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: {_REMEDY}")
    size = path.stat().st_size
    if size != entry.bytes:
        state = "truncated" if size < entry.bytes else "foreign or overwritten"
        raise ArtifactError(f"{path} has {size} bytes of {entry.bytes}: it is {state}; {_REMEDY}")


def sample_of(folder: Path, entries: list[ShardEntry]) -> list[ShardEntry]:
    """The shards that a start checks: first, last, some in between, and what looks touched.

    A shard that is newer than the manifest was copied or changed after the cache was written.
    """
    if not entries:
        return []
    written = (folder / MANIFEST_NAME).stat().st_mtime_ns
    middle = random.Random(entries[0].sha256).sample(entries, min(SAMPLED_SHARDS, len(entries)))
    chosen = {entry.file for entry in (entries[0], entries[-1], *middle)}
    for entry in entries:
        path = folder / entry.file
        if path.is_file() and path.stat().st_mtime_ns > written:
            chosen.add(entry.file)
    return [entry for entry in entries if entry.file in chosen]


def verify_shards(folder: Path, entries: list[ShardEntry], *, sample: bool = False) -> None:
    """Check sizes of all and sha256 of every shard, or of a sample, with a progress bar.

    Raises:
        ArtifactError: a shard is missing, truncated, or was changed since it was written.
    """
    for entry in entries:
        check_size(folder / entry.file, entry)
    entries = sample_of(folder, entries) if sample else entries
    total = sum(entry.bytes for entry in entries)
    with progress_bar(total, f"checking {folder.name}", "B") as bar:
        for entry in entries:
            path = folder / entry.file
            if sha256_of(path, bar.update) != entry.sha256:
                raise ArtifactError(f"{path} was changed since it was written (sha256): {_REMEDY}")
