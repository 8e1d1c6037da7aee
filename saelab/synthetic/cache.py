"""Planted rows as an ordinary activation cache: trainers read it like one of a language model.

Where a model's cache names model, text and contexts, this one says what there is in their place:
every row is a context of its own, its token is 0, and no row is excluded. Gradients are those of
the loss in `planted_loss`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saelab.cache.config import TokenFilter
from saelab.cache.format import KIND, row_bytes
from saelab.cache.harvest import Rows
from saelab.cache.hook_folder import HookFolder, remove_cache, require_only_cache
from saelab.config import to_plain
from saelab.errors import ConfigError
from saelab.formats.files import remedy_when_full, require_free_space
from saelab.formats.lock import writer_lock
from saelab.formats.manifest import new_manifest
from saelab.progress import progress_bar

from .config import PlantedConfig
from .generator import CHUNK_ROWS, TRAIN, PlantedSource
from .planted_loss import DESCRIPTION, planted_gradients
from .presets import preset_name
from .truth import ORIGIN_KEY, planted_hash

HOOK_POINT = "planted"
DTYPE = "float32"
SHARD_ROWS = 8 * CHUNK_ROWS
TEXT = {"source": "none: planted features"}
REASONS = ("bos", "separator", "position", "norm")
EVERY_ROW = TokenFilter(exclude_bos=False, exclude_separators=False, max_norm_ratio=None)


def write_planted_cache(out: Path, config: PlantedConfig, *, overwrite: bool = False) -> Path:
    """Write the training rows of a planted dictionary as the activation cache `out/planted/`.

    Args:
        out: the folder that holds the cache.
        config: the planted dictionary; its first `n_rows` rows of the stream "train" are written.
        overwrite: replace a cache that is there.

    Returns:
        The cache's folder, for `open_cache` and `saelab train --cache`.

    Raises:
        ConfigError: something is there and `overwrite` was not given.
        ArtifactError: what is there is no cache, so it is not replaced.
        ResourceError: the disk is too small, or full.
    """
    folder = Path(out) / HOOK_POINT
    with writer_lock(folder), remedy_when_full("give the same command again with --overwrite"):
        _write(folder, config, overwrite)
    return folder


def _write(folder: Path, config: PlantedConfig, overwrite: bool) -> None:
    there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if there and not overwrite:
        raise ConfigError(
            f"{folder} already exists: give --overwrite to replace it, or another folder"
        )
    if there:
        require_only_cache(folder)
    needed = config.n_rows * row_bytes(config.d_in, DTYPE, gradients=True)
    require_free_space(folder, needed, f"a cache of {config.n_rows:,} planted rows")
    if there:
        remove_cache(folder)
    writing = HookFolder(folder, planted_manifest(config), SHARD_ROWS)
    writing.save_manifest()
    _fill(writing, config)
    writing.finish()


def planted_manifest(config: PlantedConfig) -> dict[str, Any]:
    """The manifest of a planted cache that has no shard yet."""
    rule = to_plain(EVERY_ROW)
    made_from = {
        "model": f"planted:{preset_name(config)}",
        "model_hash": planted_hash(config),
        "hook_point": HOOK_POINT,
        "text": TEXT,
        "text_hash": None,
        "context_length": 1,
        "prepend_bos": False,
        "row_rule": rule,
        "norm_ceiling": None,
        "model_dtype": DTYPE,
        ORIGIN_KEY: to_plain(config),
    }
    manifest = new_manifest(KIND, seed=config.seed, config=to_plain(config), made_from=made_from)
    return manifest | {
        "status": "writing",
        "resumable": False,
        "hook_point": HOOK_POINT,
        "d_in": config.d_in,
        "dtype": DTYPE,
        "has_gradients": True,
        "gradient_of": DESCRIPTION,
        "tokenizer": None,
        "bos_rule": "there are no tokens: every row is a context of its own, its token is 0",
        "text": TEXT,
        "context_length": 1,
        "row_rule": rule,
        "calibration": None,
        "norm_ceiling": None,
        "n_tokens_requested": config.n_rows,
        "shards": [],
    }


def _fill(folder: HookFolder, config: PlantedConfig) -> None:
    done = 0
    with progress_bar(config.n_rows, "planting", "rows") as bar:
        source = PlantedSource(config)
        for chunk in source.chunks(config.n_rows, stream=TRAIN):
            n_rows = len(chunk.rows)
            folder.add(
                Rows(
                    activations=chunk.rows,
                    gradients=planted_gradients(chunk.rows, source.features, chunk.coefficients),
                    tokens=torch.zeros(n_rows, dtype=torch.int64),
                    sequence=torch.arange(done, done + n_rows),
                    position=torch.zeros(n_rows, dtype=torch.int64),
                    excluded=dict.fromkeys(REASONS, 0),
                )
            )
            done += n_rows
            bar.update(n_rows)
            if done % SHARD_ROWS == 0 or done == config.n_rows:
                folder.commit((done - 1) % SHARD_ROWS + 1)
