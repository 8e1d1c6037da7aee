"""One cache folder while it is written: its buffer, its shards, its manifest.

A shard is renamed into place first and named by the manifest second, so whatever moment the process
dies at, the manifest names finished shards only, and the next run overwrites what it does not name.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import (
    TEMPORARY_SUFFIX,
    remove_leftovers,
    sha256_of,
    write_tensors,
)
from saelab.formats.kinds import KINDS
from saelab.formats.manifest import new_manifest, write_manifest
from saelab.model.language_model import LanguageModel
from saelab.text.contexts import describe_text

from .batch import RowSums
from .config import HarvestConfig
from .format import (
    DTYPES,
    KIND,
    MANIFEST_NAME,
    METADATA_KEY,
    ShardEntry,
    content_hash,
    map_shard,
    read_cache_manifest,
    row_bytes,
    shard_entries,
    shard_name,
    verify_shards,
)
from .harvest import Calibration, Rows


def provenance(
    model: LanguageModel,
    config: HarvestConfig,
    hook_point: str,
    norm_ceiling: float | None,
    text_hash: str | None,
) -> dict[str, Any]:
    """What rows of this harvest are made from, as every later artifact records it.

    Args:
        text_hash: `content_hash` of `describe_text`; None for a stream, whose content is unknown.
    """
    settings = config.to_json()
    return {
        "model": config.model,
        "model_hash": model.content_hash,
        "hook_point": hook_point,
        "text": settings["text"],
        "text_hash": text_hash,
        "context_length": config.context_length,
        "prepend_bos": model.bos_id is not None,
        "row_rule": settings["rows"],
        "norm_ceiling": norm_ceiling,
        "model_dtype": config.model_dtype,
    }


def start_manifest(
    model: LanguageModel,
    config: HarvestConfig,
    hook_point: str,
    d_in: int,
    calibration: Calibration,
) -> dict[str, Any]:
    """The manifest of a cache that has no shard yet."""
    text = describe_text(config.text)
    ceiling = calibration.norm_ceiling
    manifest = new_manifest(
        KIND,
        seed=config.text.seed,
        config=config.to_json(),
        made_from=provenance(model, config, hook_point, ceiling, text["content_hash"]),
    )
    return manifest | {
        "status": "writing",
        "hook_point": hook_point,
        "d_in": d_in,
        "dtype": config.cache_dtype,
        "has_gradients": config.gradients,
        "gradient_of": "sum of next-token losses, in nats" if config.gradients else None,
        "tokenizer": {
            "of_model": config.model,
            "bos_id": model.bos_id,
            "separator_id": model.separator_id,
            "special_ids": sorted(model.special_ids),
        },
        "bos_rule": "every context starts with the BOS token where the model has one",
        "text": text,
        "context_length": config.context_length,
        "row_rule": config.to_json()["rows"],
        "calibration": calibration.to_json(),
        "norm_ceiling": ceiling,
        "n_tokens_requested": config.n_tokens,
        "shards": [],
    }


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
    def resume(cls, folder: Path, config: HarvestConfig, model: LanguageModel) -> HookFolder:
        """Take up what an interrupted run left, after checking that it is of the same run.

        Raises:
            ConfigError: it was started with other settings, another model or another text.
            ArtifactError: manifest or shards are damaged.
        """
        path = folder / MANIFEST_NAME
        manifest = read_cache_manifest(path)
        differing = _differing(manifest["config"], config.to_json())
        if manifest["made_from"]["model_hash"] != model.content_hash:
            differing.append("model: its files changed since")
        if manifest["made_from"].get("text_hash") != describe_text(config.text)["content_hash"]:
            differing.append(f"text: the content of {config.text.source} changed since")
        if differing:
            raise ConfigError(
                f"{folder} was started with other settings ({'; '.join(differing)}): resume with "
                "the same settings, or start again with --overwrite"
            )
        remove_leftovers(folder)
        verify_shards(folder, shard_entries(manifest, path))
        return cls(folder, manifest, config.shard_contexts)

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
        columns = {
            "activations": rows.activations,
            "tokens": rows.tokens,
            "sequence": rows.sequence,
            "position": rows.position,
        }
        if rows.gradients is not None:
            columns["gradients"] = rows.gradients
        if not self._buffer:
            self._buffer = self._new_buffer()
        stop = self._fill + len(rows.tokens)
        for name, column in columns.items():
            self._buffer[name][self._fill : stop].copy_(column)
        self._fill = stop
        self._excluded.update(rows.excluded)

    def _new_buffer(self) -> dict[str, Tensor]:
        """Room for a shard of which no row is excluded; used again for every shard."""
        wide = ["activations", "gradients"] if self.manifest["has_gradients"] else ["activations"]
        dtype, d_in = DTYPES[self.manifest["dtype"]], self.manifest["d_in"]
        buffer = {name: torch.empty(self._room, d_in, dtype=dtype) for name in wide}
        for name, kind in (
            ("tokens", torch.int32),
            ("sequence", torch.int64),
            ("position", torch.int32),
        ):
            buffer[name] = torch.empty(self._room, dtype=kind)
        return buffer

    def commit(self, contexts: int) -> None:
        """Write the unfinished shard, which covers `contexts` contexts, then name it."""
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
        self.manifest["shards"].append(entry.to_json())
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


def _differing(recorded: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields that differ, as "name: recorded, not given", with dots for nesting."""
    differing = []
    for name in sorted(recorded.keys() | given.keys()):
        before, now = recorded.get(name), given.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            differing += _differing(before, now, f"{prefix}{name}.")
        elif before != now:
            differing.append(f"{prefix}{name}: {before!r}, not {now!r}")
    return differing


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
