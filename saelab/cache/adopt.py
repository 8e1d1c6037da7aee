"""Activations from elsewhere as activation caches: `saelab cache adopt`.

The arrays are read twice: once to check every value, to hash the files and to measure norms, so
that nothing is written or replaced before all of it is known to be good; once to write. Both passes
hold a few megabytes. A share of the contexts is held out into caches of their own,
`OUT/held_out/<hook point>/`, which stand for the held-out text that a language model would read.

Rows of an array [rows, d_in] are contexts of one position each. `sequence` of a row is the index of
its context in the files as given, held-out ones counted, so that labels by row find theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelab.config import to_plain
from saelab.errors import ActivationError, Stopped
from saelab.formats.files import (
    hash_of,
    remedy_when_full,
    require_free_space,
    sha256_of,
)
from saelab.formats.lock import writer_lock
from saelab.interrupts import StopRequest, stop_on_signals
from saelab.text.contexts import TextBatch

from .adopted_source import AdoptedSource, Part, open_source
from .arrays import ForeignArray
from .batch import first_not_finite
from .config import AdoptConfig
from .format import ADOPTED_KEY, DTYPES, HELD_OUT, MANIFEST_NAME, new_cache_manifest, row_bytes
from .harvest import CapturedBatch, rows_beside
from .hook_folder import HookFolder, remove_cache
from .permutation import Permutation
from .rows import find_norm_ceiling, select_rows
from .writer import check_existing

_log = logging.getLogger(__name__)

NO_TEXT = "none: activations from elsewhere"
"""What `made_from` names as the text."""
SHARD_ROWS, SHARD_BYTES = 1 << 16, 1 << 27
"""Rows and bytes of a shard of training rows, at most; of held-out rows an eighth."""
NORM_SAMPLE = 131_072
"""Rows whose norms set the ceiling: all, or as many spread evenly over them."""


def adopt_activations(
    paths: Sequence[Path],
    out: Path,
    config: AdoptConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write activations from files as caches, `out/<hook_point>/` and `out/held_out/<hook_point>/`.

    Args:
        paths: .npy, .npz, .pt, .safetensors or .parquet files, or folders of `datasets`, joined in
            their order; arrays [rows, d_in] or [contexts, positions, d_in].
        out: the folder that holds the caches.
        config: what of them, and how.
        resume: go on with what an interrupted run left; finished caches are left as they are.
        overwrite: replace caches that are there, once all input has been checked.

    Returns:
        The cache folders: of the training rows by hook point, then of the held-out ones.

    Raises:
        ConfigError: settings that do not fit the files, or caches are there already.
        ActivationError: files that are damaged, ragged, of different shapes, or hold NaN, infinity
            or anything but numbers; the file and the row are named.
        ModelError: the model named is unknown or has no such hook point.
        ResourceError: the disk is too small, or full; finished shards are kept.
        Stopped: Ctrl-C or SIGTERM; finished shards are kept.
    """
    out = Path(out)
    with writer_lock(out), remedy_when_full("go on with --resume"):
        source = open_source(paths, config)
        shares = [out, out / HELD_OUT] if config.held_out_fraction else [out]
        folders = [share / name for share in shares for name in source.widths]
        check_existing(folders, resume=resume, overwrite=overwrite)
        with stop_on_signals() as stop:
            ceilings, origin = _survey(source, config, stop)
            plain = to_plain(config) | {"paths": [str(path) for path in paths]}
            writers = [
                _Writer.open(
                    share, source, plain, ceilings, {**origin, "part": part}, resume=resume
                )
                for share, part in zip(shares, ("train", HELD_OUT), strict=False)
            ]
            _write(out, source, config, writers, stop)
    return folders


def _survey(
    source: AdoptedSource, config: AdoptConfig, stop: StopRequest
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Check every value; the norm ceiling of each hook point, and what the files are.

    Raises:
        ActivationError: values that are not finite, tokens that are none, no rows to hold out.
        Stopped: nothing was written yet.
    """
    every = -(-source.n_contexts * source.context_length // NORM_SAMPLE)
    norms: dict[str, list[Tensor]] = {name: [] for name in source.widths}
    for part, first, activations, tokens in source.blocks("checking"):
        if stop:
            raise Stopped(f"stopped by {stop.signal_name}: nothing is written", stop.signal_name)
        _check_tokens(part, first, tokens, source.n_tokens_known)
        for name, block in activations.items():
            rows = block.flatten(0, 1).to(DTYPES[config.cache_dtype]).float()
            _check_finite(part.hook_points[name], rows, first, source.context_length)
            selection = _selection(source, block, tokens, None)
            norms[name].append(selection.norms[selection.keep][::every])
    ceilings = {
        name: find_norm_ceiling(config.rows, torch.cat(kept), name) for name, kept in norms.items()
    }
    n_held = _n_held_out(source, config)
    files = [_described(part) for part in source.parts]
    origin = {
        "files": files,
        "contexts": source.n_contexts,
        "positions": source.context_length,
        "has_tokens": source.parts[0].tokens is not None,
        "held_out_contexts": n_held,
        "seed": config.seed,
    }
    return ceilings, origin


def _check_finite(array: ForeignArray, rows: Tensor, first: int, length: int) -> None:
    bad = first_not_finite(rows)
    if bad is not None:
        context, position = divmod(first * length + bad, length)
        where = f"row {context}" if length == 1 else f"context {context}, position {position}"
        raise ActivationError(
            f"{array}: {where} holds a NaN or an infinity: nothing is written; leave the row out "
            "or compute it again"
        )


def _check_tokens(part: Part, first: int, tokens: Tensor, known: int | None) -> None:
    limit = known or 1 << 31
    bad = (tokens < 0) | (tokens >= limit)
    if bool(bad.any()):
        context, position = divmod(int(bad.flatten().int().argmax()), tokens.shape[1])
        raise ActivationError(
            f"{part.tokens}: the token at row {first + context}, position {position} is "
            f"{int(tokens[context, position])}; token ids lie in 0 to {limit - 1}"
        )


def _selection(
    source: AdoptedSource, block: Tensor, tokens: Int[Tensor, "batch seq"], ceiling: float | None
) -> Any:
    return select_rows(
        source.rule,
        tokens,
        block.float(),
        special_ids=source.special_ids,
        bos_id=source.bos_id,
        norm_ceiling=ceiling,
    )


def _n_held_out(source: AdoptedSource, config: AdoptConfig) -> int:
    if config.held_out_fraction == 0:
        return 0
    n_held = max(1, round(config.held_out_fraction * source.n_contexts))
    if n_held >= source.n_contexts:
        raise ActivationError(
            f"{source.n_contexts} contexts cannot be divided into training and held-out ones: give "
            "more, or --held-out-fraction 0"
        )
    return n_held


def _described(part: Part) -> dict[str, Any]:
    """A file as `made_from` names it: by what is in it, not by where it lies."""
    arrays = [*part.hook_points.values(), *([part.tokens] if part.tokens else [])]
    files = dict.fromkeys(file for array in arrays for file in array.files)
    return {
        "name": part.path.name,
        "contexts": part.contexts,
        "sha256": {file.name: sha256_of(file) for file in files},
    }


class _Writer:
    """The caches of one share of the contexts, one for each hook point, filled side by side."""

    def __init__(self, folders: dict[str, HookFolder], shard_contexts: int):
        self.folders = folders
        self._shard_contexts = shard_contexts
        self._done = self._in_shard = 0
        self._ceilings = {name: each.manifest["norm_ceiling"] for name, each in folders.items()}

    @classmethod
    def open(
        cls,
        out: Path,
        source: AdoptedSource,
        config: dict[str, Any],
        ceilings: Mapping[str, float | None],
        origin: dict[str, Any],
        *,
        resume: bool,
    ) -> _Writer:
        """Start caches, or go on with them; older ones are replaced."""
        dtype = config["cache_dtype"]
        text_hash = hash_of({name: origin[name] for name in origin if name != "part"})
        row = max(row_bytes(width, dtype, False) for width in source.widths.values())
        rows = min(SHARD_ROWS, SHARD_BYTES // row) // (8 if origin["part"] == HELD_OUT else 1)
        shard = max(1, rows // source.context_length)
        folders = {}
        for name in source.widths:
            folder = out / name
            if resume and (folder / MANIFEST_NAME).is_file():
                folders[name] = HookFolder.resume(
                    folder,
                    config,
                    shard,
                    model={"model_hash": source.model_hash, "bos_id": source.bos_id},
                    text_hash=text_hash,
                    source="the files of activations",
                )
                continue
            if folder.is_dir():
                remove_cache(folder)
            manifest = _manifest(name, source, config, ceilings[name], origin, text_hash)
            folders[name] = HookFolder(folder, manifest, shard)
            folders[name].save_manifest()
        return cls(folders, shard)

    def add(
        self,
        source: AdoptedSource,
        activations: Mapping[str, Tensor],
        tokens: Int[Tensor, "contexts positions"],
        contexts: Int[Tensor, " contexts"],
    ) -> None:
        """Append contexts, of which `contexts` are the indices in the files."""
        while len(contexts):
            taken = min(len(contexts), self._shard_contexts - self._in_shard)
            now = {name: block[:taken] for name, block in activations.items()}
            # A folder may be a shard ahead of the others where a run was killed between two.
            start = self._done - self._in_shard
            behind = [name for name, each in self.folders.items() if each.contexts <= start]
            if behind:
                text = TextBatch(tokens[:taken])
                batch = CapturedBatch(
                    first_context=0, text=text, activations=now, gradients=None, read={}
                )
                selections = {
                    name: _selection(source, block, tokens[:taken], self._ceilings[name])
                    for name, block in now.items()
                }
                rows = rows_beside(batch, selections)
                for name in behind:
                    sequence = contexts[rows[name].sequence]
                    self.folders[name].add(replace(rows[name], sequence=sequence))
            self._done += taken
            self._in_shard += taken
            if self._in_shard == self._shard_contexts:
                self._commit(behind)
            activations = {name: block[taken:] for name, block in activations.items()}
            tokens, contexts = tokens[taken:], contexts[taken:]

    def finish(self) -> None:
        """Write what is left and mark the caches complete."""
        if self._in_shard:
            start = self._done - self._in_shard
            self._commit([name for name, each in self.folders.items() if each.contexts <= start])
        for folder in self.folders.values():
            if not folder.complete:
                folder.finish()

    def _commit(self, behind: Sequence[str]) -> None:
        for name in behind:
            self.folders[name].commit(self._in_shard)
        self._in_shard = 0


def _manifest(
    hook_point: str,
    source: AdoptedSource,
    config: dict[str, Any],
    ceiling: float | None,
    origin: dict[str, Any],
    text_hash: str,
) -> dict[str, Any]:
    made_from = {
        "model": source.model,
        "model_hash": source.model_hash,
        "hook_point": hook_point,
        "text": {"source": NO_TEXT},
        "text_hash": text_hash,
        "context_length": source.context_length,
        "prepend_bos": source.bos_id is not None,
        "row_rule": to_plain(source.rule),
        "norm_ceiling": ceiling,
        "model_dtype": "float32",
        ADOPTED_KEY: origin,
    }
    tokenizer = {
        "of_model": source.model,
        "bos_id": source.bos_id,
        "special_ids": sorted(source.special_ids),
    }
    return new_cache_manifest(
        made_from,
        seed=config["seed"],
        config=config,
        d_in=source.widths[hook_point],
        dtype=config["cache_dtype"],
        tokenizer=tokenizer if source.special_ids else None,
        bos_rule="contexts are as they were given",
        text={"source": NO_TEXT, "content_hash": text_hash},
        n_tokens_requested=None,
    )


def _write(
    out: Path, source: AdoptedSource, config: AdoptConfig, writers: list[_Writer], stop: StopRequest
) -> None:
    """Write every context to the caches of its share."""
    if all(folder.complete for writer in writers for folder in writer.folders.values()):
        _log.info("%s is complete: nothing to do", out)
        return
    row = sum(row_bytes(width, config.cache_dtype, False) for width in source.widths.values())
    rows = source.n_contexts * source.context_length
    saved = sum(folder.contexts for writer in writers for folder in writer.folders.values())
    left = rows - saved * source.context_length // len(source.widths)
    require_free_space(out, left * row, f"caches of {rows:,} rows")
    order = Permutation(source.n_contexts, config.seed)
    n_held = (
        writers[0]
        .folders[next(iter(source.widths))]
        .manifest["made_from"][ADOPTED_KEY]["held_out_contexts"]
    )
    done = 0
    for _, _, activations, tokens in source.blocks("adopting"):
        indices = torch.arange(done, done + len(tokens))
        held = torch.from_numpy(order(np.asarray(indices))) < n_held
        for writer, chosen_rows in zip(writers, (~held, held), strict=False):
            chosen = {name: block[chosen_rows] for name, block in activations.items()}
            writer.add(source, chosen, tokens[chosen_rows], indices[chosen_rows])
        done += len(tokens)
        if stop and done < source.n_contexts:
            raise Stopped(
                f"stopped by {stop.signal_name} at context {done:,} of {source.n_contexts:,}: go "
                "on with the same command and --resume",
                stop.signal_name,
            )
    for writer in writers:
        writer.finish()
