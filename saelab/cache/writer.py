"""Writing activation caches: one folder per hook point, all filled by the same forward passes.

The run can be stopped at any moment, SIGKILL included, and resumed: it starts again at the first
context that no finished shard covers, with the same batches, so that the files come out identical.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from saelab.errors import ConfigError, Stopped
from saelab.formats.files import remedy_when_full, require_free_space
from saelab.formats.lock import writer_lock
from saelab.interrupts import StopRequest, stop_on_signals
from saelab.memory import keep_freed_memory
from saelab.model.identity import identity_of
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.text.contexts import check_text, describe_text

from .config import HarvestConfig
from .format import MANIFEST_NAME, row_bytes
from .harvest import CapturedBatch, Harvest, load_model
from .hook_folder import HookFolder, remove_cache, require_only_cache

_log = logging.getLogger(__name__)


def write_caches(
    out: Path,
    config: HarvestConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    model: LanguageModel | None = None,
) -> list[Path]:
    """Harvest activations into one cache folder per hook point, `out/<hook_point>/`.

    Args:
        out: the folder that holds the caches.
        config: what to harvest.
        resume: go on with what an interrupted run left; a finished cache is left as it is.
        overwrite: replace caches that are there, once everything else has been checked.
        model: the model of `config`, where it is loaded already.

    Returns:
        The cache folders, in the order of `config.hook_points`.

    Raises:
        ConfigError: a cache is there and neither `resume` nor `overwrite` was given; or it was
            started with other settings or another text; or the model cannot take the contexts.
        ModelError: the model or a hook point is unknown.
        TextError: the text does not fill one batch.
        ActivationError: a NaN or infinite activation; finished shards are kept.
        ResourceError: the disk is too small, or full; finished shards are kept.
        Stopped: Ctrl-C or SIGTERM; finished shards are kept.
    """
    with writer_lock(Path(out)), remedy_when_full("go on with --resume"):
        return _write_caches(Path(out), config, resume, overwrite, model)


def _write_caches(
    out: Path, config: HarvestConfig, resume: bool, overwrite: bool, model: LanguageModel | None
) -> list[Path]:
    paths = [out / hook_point for hook_point in config.hook_points]
    check_existing(paths, resume=resume, overwrite=overwrite)
    files = check_text(config.text)
    for line in files:
        _log.info("%s", line)
    harvest = Harvest(load_model(config) if model is None else model, config)
    folders = {
        path.name: _resumed(path, harvest)
        for path in paths
        if resume and (path / MANIFEST_NAME).is_file()
    }
    first_context = min((folders[p.name].contexts if p.name in folders else 0) for p in paths)
    if len(folders) == len(paths) and all(folder.complete for folder in folders.values()):
        _log.info("%s is complete: nothing to do", out)
        return paths
    _require_space(out, harvest, first_context)
    if config.gradients:
        # Every pass frees and takes the same gigabyte again; a twentieth of its time.
        keep_freed_memory()
    with stop_on_signals() as stop:
        batches = harvest.batches(first_context=first_context)
        if len(folders) < len(paths):
            batches = _start_folders(batches, paths, folders, harvest, files)
        _fill(out, batches, folders, harvest, first_context, stop)
    for folder in folders.values():
        if not folder.complete:
            if harvest.read_to_end is not None:
                folder.manifest["text_read"] = harvest.read_to_end
            folder.finish()
    _report(folders, config)
    return paths


def _resumed(path: Path, harvest: Harvest) -> HookFolder:
    config = harvest.config
    folder = HookFolder.resume(
        path,
        config.to_json(),
        config.shard_contexts,
        model=identity_of(harvest.model),
        text_hash=describe_text(config.text)["content_hash"],
        source=config.text.source,
    )
    begun_without = folder.manifest["text"].get("left_out_of_training", [])
    if not folder.complete and begun_without != harvest.left_out:
        raise ConfigError(
            f"{path} was begun with {len(begun_without)} documents left out that repeat held-out "
            f"ones, and there are {len(harvest.left_out)}: start again with --overwrite"
        )
    return folder


def check_existing(paths: list[Path], *, resume: bool, overwrite: bool) -> None:
    """Refuse to write over what is there unless asked to, and over anything but a cache at all.

    Raises:
        ConfigError: something is there, or both were asked for.
        ArtifactError: what is there is no cache.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: give one of them")
    there = [path for path in paths if path.exists() and (not path.is_dir() or any(path.iterdir()))]
    if there and not (resume or overwrite):
        raise ConfigError(
            f"{there[0]} already exists: give --resume to go on with it, --overwrite to replace "
            "it, or another folder"
        )
    for path in there:
        require_only_cache(path)


def _require_space(out: Path, harvest: Harvest, first_context: int) -> None:
    """Check that the rest of the rows fits on the disk; one shard of them, if nobody can know."""
    config = harvest.config
    if config.n_contexts is None:
        contexts, what = config.shard_contexts, "the first shard of a cache,"
    else:
        contexts, what = config.n_contexts - first_context, "a cache of"
    rows = contexts * config.context_length
    needed = rows * sum(
        row_bytes(width, config.cache_dtype, config.gradients) for width in harvest.widths.values()
    )
    require_free_space(out, needed, f"{what} {rows:,} tokens")


def _require_space_for_shard(
    out: Path, config: HarvestConfig, folders: list[HookFolder], done: int
) -> None:
    """Check that the next shard fits: the text's length may be unknown, the disk is shared."""
    contexts = config.shard_contexts
    if config.n_contexts is not None:
        contexts = min(contexts, config.n_contexts - done)
    require_free_space(
        out,
        contexts * sum(folder.context_bytes for folder in folders),
        "the next shard (finished ones are kept, --resume goes on with them)",
    )


def _start_folders(
    batches: Iterator[CapturedBatch],
    paths: list[Path],
    folders: dict[str, HookFolder],
    harvest: Harvest,
    files: list[str],
) -> Iterator[CapturedBatch]:
    """Calibrate on the first batches and start the folders that are missing.

    Nothing is written or deleted before these batches have gone through, so text, model and token
    filter are known to work. Returns all batches, the first ones included: they are not run twice.
    """
    head = list(islice(batches, harvest.calibration_batches))
    calibrations = {path.name: harvest.calibrate(head, path.name) for path in paths}
    for path in paths:
        if path.name in folders:
            continue
        if path.is_dir():
            remove_cache(path)
        manifest = harvest.new_manifest(path.name, calibrations[path.name])
        manifest["text_files"] = files
        folders[path.name] = HookFolder(path, manifest, harvest.config.shard_contexts)
        folders[path.name].save_manifest()
    return chain(head, batches)


def _fill(
    out: Path,
    batches: Iterator[CapturedBatch],
    folders: dict[str, HookFolder],
    harvest: Harvest,
    first_context: int,
    stop: StopRequest,
) -> None:
    """Write shards until the batches end or a signal asks to stop."""
    config = harvest.config
    length, done, in_shard = config.context_length, first_context, 0
    behind: list[HookFolder] = []
    read: dict[str, dict[str, int]] = {}
    ceilings = {name: folders[name].manifest["norm_ceiling"] for name in config.hook_points}
    total = None if config.n_contexts is None else config.n_contexts * length
    with progress_bar(total, "caching", "tokens", initial=done * length) as bar:
        for batch in batches:
            # A folder may be a shard ahead of the others where a run was killed between two.
            behind = [folder for folder in folders.values() if folder.contexts <= done - in_shard]
            if in_shard == 0:
                _require_space_for_shard(out, config, behind, done)
            rows, read = harvest.keep_rows(batch, ceilings), batch.read
            for folder in behind:
                folder.add(rows[folder.manifest["hook_point"]])
            done += len(batch.tokens)
            in_shard += len(batch.tokens)
            if in_shard == config.shard_contexts or done == config.n_contexts:
                for folder in behind:
                    folder.commit(in_shard, read)
                in_shard = 0
            bar.update(len(batch.tokens) * length)
            if stop and done != config.n_contexts:
                wanted = "" if config.n_contexts is None else f" of {config.n_contexts}"
                raise Stopped(
                    f"stopped by {stop.signal_name} with {done - in_shard}{wanted} contexts saved: "
                    "go on with the same `saelab cache` command and --resume",
                    stop.signal_name,
                )
        if in_shard:
            for folder in behind:
                folder.commit(in_shard, read)


def _report(folders: dict[str, HookFolder], config: HarvestConfig) -> None:
    for name, folder in folders.items():
        counts = (folder.manifest[key] for key in ("n_rows", "n_tokens_processed", "excluded"))
        _log.info("%s: %d rows of %d tokens, excluded %s", name, *counts)
    processed = min(folder.manifest["n_tokens_processed"] for folder in folders.values())
    if config.n_tokens is not None and processed < config.n_tokens:
        _log.warning(
            "the text ended after %d of the %d tokens asked for", processed, config.n_tokens
        )
