"""One cache folder while it is written: its buffer, its shards, its manifest.

A shard is renamed into place first and named by the manifest second, so whatever moment the process
dies at, the manifest names finished shards only, and the next run overwrites what it does not name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.config import flat, local_place
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import (
    TEMPORARY_SUFFIX,
    remove_leftovers,
    sha256_of,
    write_tensors,
)
from saelab.formats.kinds import KINDS
from saelab.formats.manifest import write_manifest
from saelab.model.identity import model_mismatch

from .batch import RowSums
from .format import (
    KIND,
    MANIFEST_NAME,
    METADATA_KEY,
    ShardEntry,
    content_hash,
    map_shard,
    origin_of,
    read_cache_manifest,
    row_bytes,
    shard_entries,
    shard_layout,
    shard_name,
    verify_shards,
)
from .harvest import Rows


class HookFolder:
    """A cache folder that is being written.

    Args:
        folder: where; made if need be.
        manifest: of a new cache, or what an interrupted run left (see `resume`).
        shard_contexts: contexts that a shard covers.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], shard_contexts: int):
        self.folder = folder
        self.manifest = manifest
        self._room = shard_contexts * manifest["context_length"]
        self._buffer: dict[str, Tensor] = {}
        self._fill = 0
        self._excluded: Counter[str] = Counter()

    @classmethod
    def resume(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        shard_contexts: int,
        *,
        model: Mapping[str, Any],
        text_hash: str | None,
        source: str,
    ) -> HookFolder:
        """Go on with what an interrupted run left, after checking that it is of the same run.

        Args:
            folder: what was left.
            config: settings of the command that goes on, as its manifest holds them.
            shard_contexts: contexts that a shard covers.
            model: what caches record of it, as `identity_of` gives it.
            text_hash: content hash of what the rows are of.
            source: what that is called.

        Raises:
            ConfigError: it was started with other settings, another model or another text.
            ArtifactError: manifest or shards are damaged.
        """
        path = folder / MANIFEST_NAME
        manifest = read_cache_manifest(path)
        before, now = flat(manifest["config"]), flat(dict(config))
        differing = [
            f"{name}: {before.get(name)!r}, not {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
            and not _same_place(before.get(name), now.get(name))
        ]
        changed = model_mismatch(origin_of(manifest), model)
        if changed is not None:
            differing.append(f"model: its files changed since ({changed})")
        if manifest["made_from"].get("text_hash") != text_hash:
            differing.append(f"text: the content of {source} changed since")
        if differing:
            raise ConfigError(
                f"{folder} was started with other settings ({'; '.join(differing)}): resume with "
                "the same settings, or start again with --overwrite"
            )
        remove_leftovers(folder)
        verify_shards(folder, shard_entries(manifest, path))
        return cls(folder, manifest, shard_contexts)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.manifest["status"] == "complete"

    @property
    def contexts(self) -> int:
        """Contexts whose rows lie in finished shards."""
        return sum(entry["contexts"] for entry in self.manifest["shards"])

    @property
    def context_bytes(self) -> int:
        """Bytes of a context of which no row is excluded."""
        return self.manifest["context_length"] * row_bytes(
            self.manifest["d_in"], self.manifest["dtype"], self.manifest["has_gradients"]
        )

    def save_manifest(self) -> None:
        """Write the manifest as it stands."""
        write_manifest(self.folder / MANIFEST_NAME, self.manifest)

    def add(self, rows: Rows) -> None:
        """Append rows to the unfinished shard."""
        if not self._buffer:
            # Room for a shard of which no row is excluded; used again for every shard.
            self._buffer = {
                name: torch.empty(shape, dtype=dtype)
                for name, (shape, dtype) in shard_layout(self.manifest, self._room).items()
                if not name.startswith("sum")
            }
        stop = self._fill + len(rows.tokens)
        for name, column in self._buffer.items():
            column[self._fill : stop].copy_(getattr(rows, name))
        self._fill = stop
        self._excluded.update(rows.excluded)

    def commit(
        self, contexts: int, text_read: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        """Write the unfinished shard, then name it.

        Args:
            contexts: that it covers.
            text_read: what became of all text up to its end, by source; None: there is no text.
        """
        index = len(self.manifest["shards"])
        path = self.folder / shard_name(index)
        tensors = {name: column[: self._fill] for name, column in self._buffer.items()}
        sums = RowSums.of(tensors["activations"])
        tensors["sum"] = sums.total
        tensors["sum_squared_norm"] = torch.tensor([sums.squared_norm], dtype=torch.float64)
        if "gradients" in tensors:
            squared = RowSums.of(tensors["gradients"]).squared_norm
            tensors["sum_squared_gradient_norm"] = torch.tensor([squared], dtype=torch.float64)
        identity = {
            "kind": KIND,
            "schema_version": KINDS[KIND].schema_version,
            "shard": index,
            "hook_point": self.manifest["hook_point"],
            "model_hash": self.manifest["made_from"]["model_hash"],
        }
        write_tensors(path, tensors, {METADATA_KEY: json.dumps(identity, sort_keys=True)})
        entry = ShardEntry(
            file=path.name,
            contexts=contexts,
            rows=self._fill,
            bytes=path.stat().st_size,
            sha256=sha256_of(path),
            excluded=dict(sorted(self._excluded.items())),
        )
        self.manifest["shards"].append(asdict(entry))
        if text_read is not None:
            self.manifest["text_read"] = text_read
        self.save_manifest()
        self._fill = 0
        self._excluded.clear()

    def finish(self) -> None:
        """Add up the shards, in their order, and mark the cache complete.

        Raises:
            ActivationError: no row was kept.
        """
        entries = shard_entries(self.manifest, self.folder / MANIFEST_NAME)
        d_in = self.manifest["d_in"]
        sums = RowSums(n_rows=0, total=torch.zeros(d_in, dtype=torch.float64), squared_norm=0.0)
        squared_gradients = 0.0
        excluded: Counter[str] = Counter()
        for entry in entries:
            tensors = map_shard(self.folder / entry.file, self.manifest, entry)
            sums = sums + RowSums(
                n_rows=entry.rows,
                total=tensors["sum"],
                squared_norm=float(tensors["sum_squared_norm"]),
            )
            if "sum_squared_gradient_norm" in tensors:
                squared_gradients += float(tensors["sum_squared_gradient_norm"])
            excluded.update(entry.excluded)
        statistics = sums.statistics(self.manifest["norm_ceiling"])
        finished = {
            "status": "complete",
            "n_contexts": self.contexts,
            "n_tokens_processed": self.contexts * self.manifest["context_length"],
            "n_rows": sums.n_rows,
            "excluded": dict(excluded),
            "statistics": {
                "mean": statistics.mean.tolist(),
                "mean_squared_norm": statistics.mean_squared_norm,
                "centred_mean_squared_norm": statistics.centred_mean_squared_norm,
            },
        }
        if self.manifest["has_gradients"]:
            finished["gradient_rms"] = (squared_gradients / (sums.n_rows * d_in)) ** 0.5
        self.manifest.update(finished)
        self.manifest["content_hash"] = content_hash(self.manifest)
        self.save_manifest()


def _same_place(before: object, now: object) -> bool:
    """Whether a recorded relative path means the same file or folder as an absolute one."""
    return isinstance(before, str) and local_place(before) == now


def require_only_cache(folder: Path) -> None:
    """Check that a folder holds nothing but a cache or parts of one, so that it may be replaced.

    Raises:
        ArtifactError: it is not a folder, or holds files that no cache writes.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file and a cache is a folder: choose another name")
    foreign = sorted(set(folder.iterdir()) - set(_cache_files(folder)))
    if foreign:
        raise ArtifactError(
            f"{folder} also holds {foreign[0].name!r}, which no cache writes: it is left alone; "
            "choose another folder, or delete it yourself"
        )


def remove_cache(folder: Path) -> None:
    """Delete a cache: its manifest first, so that what is left is never taken for a whole one."""
    require_only_cache(folder)
    for path in _cache_files(folder):
        path.unlink(missing_ok=True)
    folder.rmdir()


def _cache_files(folder: Path) -> list[Path]:
    """What a cache writes, the manifest first; the temporary files of a killed run included."""
    patterns = ("shard-*.safetensors", f"*{TEMPORARY_SUFFIX}")
    return [
        folder / MANIFEST_NAME,
        *(path for pattern in patterns for path in sorted(folder.glob(pattern))),
    ]
