"""Planted rows as an ordinary activation cache: trainers read it like one of a language model.

Where a model's cache names model, text and contexts, this one says what there is in their place:
every row is a context of its own, its token is 0, and no row is excluded.

Gradients are those of a loss with a known answer, so that methods that learn from gradients can be
tested: a linear readout names the strongest feature of a row, with logits τ · x Vᵀ, and the loss is
the cross-entropy (nats) of the feature with the largest coefficient. Its gradient with respect to
the row is τ (softmax − one-hot) V, which points from the features confused with it to the one
meant. A row without any feature has no label and a zero gradient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache.config import TokenFilter
from saelab.cache.format import (
    MANIFEST_NAME,
    new_cache_manifest,
    read_cache_manifest,
    row_bytes,
)
from saelab.cache.harvest import Rows
from saelab.cache.hook_folder import HookFolder, remove_cache, require_only_cache
from saelab.config import to_plain
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import require_free_space
from saelab.formats.lock import writer_lock
from saelab.progress import progress_bar
from saelab.sparse import SparseCodes

from .config import PlantedConfig
from .generator import CHUNK_ROWS, TRAIN, PlantedSource
from .presets import preset_name
from .truth import ORIGIN_KEY, planted_hash

HOOK_POINT = "planted"
DTYPE = "float32"
SHARD_ROWS = 8 * CHUNK_ROWS
TEXT = {"source": "none: planted features"}
REASONS = ("bos", "separator", "position", "norm")
EVERY_ROW = TokenFilter(exclude_bos=False, exclude_separators=False, max_norm_ratio=None)

SHARPNESS = 10.0
"""τ: at cosine one of a unit row, e^10 to one against a feature at a right angle."""
DESCRIPTION = (
    f"cross-entropy in nats of the row's strongest feature under the logits {SHARPNESS:g} · x Vᵀ"
)


def write_planted_cache(out: Path, config: PlantedConfig, *, overwrite: bool = False) -> Path:
    """Write the training rows of a planted dictionary as the activation cache `out/planted/`.

    Args:
        config: the planted dictionary; its first `n_rows` rows of the stream "train" are written.
        overwrite: replace a cache that is there. What was begun with the same settings is replaced
            without it.

    Returns:
        The cache's folder, for `open_cache` and `saelab train --cache`.

    Raises:
        ConfigError: something is there and `overwrite` was not given.
        ArtifactError: what is there is no cache, so it is not replaced.
        ResourceError: the disk is too small, or full.
    """
    folder = Path(out) / HOOK_POINT
    with writer_lock(folder):
        exists = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if exists and not overwrite and not _is_unfinished(folder / MANIFEST_NAME, config):
            raise ConfigError(
                f"{folder} already exists: give --overwrite to replace it, or another folder"
            )
        if exists:
            require_only_cache(folder)
        needed = config.n_rows * row_bytes(config.d_in, DTYPE, gradients=True)
        require_free_space(folder, needed, f"a cache of {config.n_rows:,} planted rows")
        if exists:
            remove_cache(folder)
        writing = HookFolder(folder, planted_manifest(config), SHARD_ROWS)
        writing.save_manifest()
        _fill(writing, config)
        writing.finish()
    return folder


def _is_unfinished(path: Path, config: PlantedConfig) -> bool:
    """Whether a manifest is of a cache of this planted dictionary that was cut short."""
    try:
        manifest = read_cache_manifest(path)
    except ArtifactError:
        return False
    return manifest["status"] != "complete" and manifest["config"] == to_plain(config)


def planted_manifest(config: PlantedConfig) -> dict[str, Any]:
    """The manifest of a planted cache that has no shard yet."""
    made_from = {
        "model": f"planted:{preset_name(config)}",
        "model_hash": planted_hash(config),
        "hook_point": HOOK_POINT,
        "text": TEXT,
        "text_hash": None,
        "context_length": 1,
        "prepend_bos": False,
        "row_rule": to_plain(EVERY_ROW),
        "norm_ceiling": None,
        "model_dtype": DTYPE,
        ORIGIN_KEY: to_plain(config),
    }
    return new_cache_manifest(
        made_from,
        seed=config.seed,
        config=to_plain(config),
        d_in=config.d_in,
        dtype=DTYPE,
        gradient_of=DESCRIPTION,
        bos_rule="there are no tokens: every row is a context of its own, its token is 0",
        text=TEXT,
        n_tokens_requested=config.n_rows,
        resumable=False,
    )


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


def strongest_feature(coefficients: SparseCodes) -> Int[Tensor, " rows"]:
    """The feature with the largest coefficient in each row; −1 where none is active."""
    counts = coefficients.row_pointer.diff()
    longest = int(counts.max()) if counts.numel() else 0
    if not longest:
        return torch.full_like(counts, -1)
    # Rows padded to the longest, so that one argmax serves all.
    index = torch.arange(longest)
    inside = index < counts[:, None]
    pair = (coefficients.row_pointer[:-1, None] + index).clamp_max(coefficients.latent.shape[0] - 1)
    value = torch.where(inside, coefficients.value[pair].double(), -1.0)
    best = coefficients.latent[pair.gather(1, value.argmax(1, keepdim=True))].squeeze(1)
    return torch.where(counts > 0, best, -1)


def planted_gradients(
    rows: Float[Tensor, "rows d_in"],
    features: Float[Tensor, "n_features d_in"],
    coefficients: SparseCodes,
) -> Float[Tensor, "rows d_in"]:
    """Gradient of the planted loss with respect to each row."""
    label = strongest_feature(coefficients)
    slope = (SHARPNESS * rows @ features.T).softmax(1)
    named = label >= 0
    slope[named.nonzero().squeeze(1), label[named]] -= 1
    slope[~named] = 0
    return SHARPNESS * slope @ features
