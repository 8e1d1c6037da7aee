"""A task's activations at a site as an ordinary activation cache, for `saelab train --cache`.

Every row is one prompt's activation at the site; in place of a text the manifest names the task. A
dictionary trained on the cache records site and task, by which the suite knows where to judge it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache.config import TokenFilter
from saelab.cache.format import new_cache_manifest, row_bytes
from saelab.cache.harvest import Rows
from saelab.cache.hook_folder import HookFolder, remove_cache, require_only_cache
from saelab.config import to_plain
from saelab.errors import ConfigError
from saelab.formats.files import require_free_space
from saelab.model.identity import identity_of
from saelab.model.language_model import LanguageModel

from .sites import PromptSite
from .tasks import Prompt, padded_tokens, positions_of

ORIGIN_KEY = "task"
"""Where `made_from` keeps which task, split and seed the rows are of."""
DTYPE = "float32"
REASONS = ("bos", "separator", "position", "norm")
EVERY_ROW = TokenFilter(exclude_bos=False, exclude_separators=False, max_norm_ratio=None)


def write_task_caches(
    out: Path,
    model: LanguageModel,
    task_name: str,
    prompts: Sequence[Prompt],
    activations: Mapping[PromptSite, Float[Tensor, "prompts _"]],
    *,
    split: str,
    seed: int,
    overwrite: bool = False,
) -> list[Path]:
    """Write one cache per site, `out/<site>/`.

    Args:
        activations: site -> a row per prompt.

    Returns:
        The caches' folders, in the order of the sites.

    Raises:
        ConfigError: a cache exists and `overwrite` was not given.
        ArtifactError: a folder of that name is no cache, so it is not replaced.
        ResourceError: the disk is too small, or full.
    """
    check_folders(out, list(activations), overwrite=overwrite)
    needed = sum(
        len(rows) * row_bytes(rows.shape[1], DTYPE, False) for rows in activations.values()
    )
    require_free_space(
        out, needed, f"caches of {len(prompts):,} prompts at {len(activations)} sites"
    )
    origin = {"name": task_name, "split": split, "seed": seed, "n_prompts": len(prompts)}
    folders = [out / str(site) for site in activations]
    for folder, (site, rows) in zip(folders, activations.items(), strict=True):
        if folder.is_dir():
            remove_cache(folder)
        positions = positions_of(prompts, site.position)
        writing = HookFolder(folder, _manifest(model, site, rows, origin), len(rows))
        writing.save_manifest()
        writing.add(
            Rows(
                activations=rows.cpu().float(),
                gradients=None,
                tokens=padded_tokens(prompts).gather(1, positions[:, None])[:, 0],
                sequence=torch.arange(len(rows)),
                position=positions,
                excluded=dict.fromkeys(REASONS, 0),
            )
        )
        writing.commit(len(rows))
        writing.finish()
    return folders


def check_folders(out: Path, sites: Sequence[PromptSite], *, overwrite: bool) -> None:
    """Refuse to replace what may not be replaced; before anything is computed.

    Raises:
        ConfigError: a cache exists and `overwrite` was not given.
        ArtifactError: a folder of that name is no cache.
    """
    for folder in (out / str(site) for site in sites):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not overwrite:
                raise ConfigError(
                    f"{folder} already exists: give --overwrite to replace it, or another folder"
                )
            require_only_cache(folder)


def _manifest(
    model: LanguageModel,
    site: PromptSite,
    rows: Float[Tensor, "prompts d_in"],
    origin: dict[str, Any],
) -> dict[str, Any]:
    text = {"source": f"task: {origin['name']}"}
    made_from = {
        "hook_point": str(site),
        "text": text,
        "context_length": 1,
        "row_rule": to_plain(EVERY_ROW),
        "norm_ceiling": None,
        "model": model.name,
        **identity_of(model),
        "text_hash": None,
        "prepend_bos": model.bos_id is not None,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        ORIGIN_KEY: origin,
    }
    return new_cache_manifest(
        made_from,
        seed=origin["seed"],
        config=origin,
        d_in=rows.shape[1],
        dtype=DTYPE,
        text=text,
        bos_rule="one row per prompt of the task, at the position its site names",
        n_tokens_requested=len(rows),
        resumable=False,
    )
