"""One pass of a language model over its text: sparse codes of several dictionaries to disk.

The pass can be stopped at any moment and goes on at a shard boundary, if everything that decides
the codes is still the same; shards of another build are removed.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import site_rows
from saelab.errors import Stopped, TextError
from saelab.formats.files import hash_of, remove_leftovers
from saelab.interrupts import StopRequest, stop_on_signals
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.text.contexts import TextBatch, text_batches

from .config import FeaturesConfig
from .schema import check_context_length
from .shards import Shards, ShardText, shard_contexts, write_shard

logger = logging.getLogger(__name__)

WORK_FOLDER = "features.build"
"""Folder in the dictionary's where the shards of an unfinished build lie."""
BUFFERED_TOKENS = 65_536
"""Tokens of a shard, for one dictionary; shared among several, whose codes are held together."""
LEAST_SHARD_TOKENS = 4_096


@dataclass(eq=False)
class StoreSubject:
    """A dictionary being read, and its shards."""

    saved: SavedDictionary
    """The dictionary."""
    folder: Path
    """Where its shards go."""
    build: str
    """Hash of everything that decides its codes."""
    shard_contexts: int
    """Contexts of a shard."""
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Codes of the unfinished shard: rows, latents, activations of each batch."""

    def path(self, index: int) -> Path:
        """File of a shard."""
        return self.folder / f"shard-{index:05d}.safetensors"


def subjects_of(
    dictionaries: Sequence[SavedDictionary],
    spec: DataSpec,
    model: LanguageModel | None,
    config: FeaturesConfig,
) -> list[StoreSubject]:
    """Put each dictionary together with the name of its build; adopted rows need no model."""
    shard = _shard_contexts(len(dictionaries), spec.context_length)
    text = spec.text_described()
    return [
        StoreSubject(
            saved,
            saved.folder / WORK_FOLDER,
            hash_of(
                {
                    "dictionary": saved.content_hash,
                    "model": None if model is None else model.content_hash,
                    "dtype": None if model is None else str(model.dtype),
                    "hook_point": str(spec.site),
                    "text": text,
                    "split": config.split,
                    "context_length": spec.context_length,
                    "n_tokens": config.n_tokens,
                    "shard_contexts": shard,
                }
            ),
            shard,
        )
        for saved in dictionaries
    ]


def read_text(
    model: LanguageModel, spec: DataSpec, subjects: Sequence[StoreSubject], config: FeaturesConfig
) -> list[Shards]:
    """Run the model over the text and write every dictionary's codes, or finish what was begun.

    Returns:
        The codes of each subject.

    Raises:
        TextError: the text does not fill one context.
        ConfigError: contexts too long for the store.
        ActivationError: activations that are not finite.
        Stopped: a signal asked to stop; the same command goes on.
        ResourceError: the disk is full.
    """
    check_context_length(spec.context_length)
    per_shard = subjects[0].shard_contexts
    wanted = -(-config.n_tokens // spec.context_length)
    done = finished_shards(subjects, per_shard)
    contexts = islice(
        text_batches(
            spec.text,
            model,
            split="train" if config.split == "train" else "held_out",
            context_length=spec.context_length,
            batch_contexts=1,
            skip_contexts=min(done * per_shard, wanted),
        ),
        max(0, wanted - done * per_shard),
    )
    with (
        stop_on_signals() as stop,
        progress_bar(
            wanted * spec.context_length,
            "reading text",
            "tokens",
            initial=done * per_shard * spec.context_length,
        ) as bar,
    ):
        index = done
        while shard := list(islice(contexts, per_shard)):
            batch = TextBatch.joined(shard)
            text = _encode(model, spec, subjects, batch, index * per_shard, config, stop, bar)
            for subject in subjects:
                write_codes(subject, index, text)
            index += 1
    if index == 0:
        raise TextError(f"the {config.split} part of {spec.text.source} fills no context")
    return [
        Shards([subject.path(number) for number in range(index)], subject.saved.dictionary.d_sae)
        for subject in subjects
    ]


def discard(subjects: Sequence[StoreSubject]) -> None:
    """Remove the shards, when the stores are built."""
    for subject in subjects:
        shutil.rmtree(subject.folder, ignore_errors=True)


@torch.no_grad()
def _encode(
    model: LanguageModel,
    spec: DataSpec,
    subjects: Sequence[StoreSubject],
    contexts: TextBatch,
    first_context: int,
    config: FeaturesConfig,
    stop: StopRequest,
    bar: Any,
) -> ShardText:
    """Fill every subject's buffer with the codes of one shard; returns the shard's text."""
    length = spec.context_length
    counted: list[np.ndarray] = []
    excluded: Counter[str] = Counter()
    for subject in subjects:
        subject.pairs.clear()
    for start in range(0, len(contexts), config.batch_contexts):
        if stop:
            raise Stopped(
                f"stopped by {stop.signal_name} after {first_context} contexts: the same command "
                "goes on from there",
                stop.signal_name,
            )
        batch = contexts[start : start + config.batch_contexts]
        captured = model.capture(batch.tokens, spec.site.hook_points)
        rows = site_rows(model, spec, batch, captured, first_context + start)
        excluded.update(rows.excluded)
        counted.append(rows.keep.cpu().numpy())
        index = (
            start * length
            + rearrange(rows.keep, "context position -> (context position)").nonzero()[:, 0].cpu()
        )
        for subject in subjects:
            codes = subject.saved.dictionary.encode(rows.inputs)
            subject.pairs.append(
                (
                    index[codes.pair_rows().cpu()].numpy(),
                    codes.latent.cpu().numpy(),
                    codes.value.cpu().numpy(),
                )
            )
        bar.update(batch.tokens.numel())
    lengths = contexts.lengths().numpy()
    return ShardText(
        first_context,
        contexts.tokens.numpy(),
        np.concatenate(counted),
        dict(excluded),
        lengths if (lengths < length).any() else None,
    )


def write_codes(subject: StoreSubject, index: int, text: ShardText) -> None:
    """Write the codes that a subject has buffered as one shard."""
    row, latent, value = (np.concatenate(part) for part in zip(*subject.pairs, strict=True))
    subject.pairs.clear()
    write_shard(
        subject.path(index),
        text,
        row,
        latent,
        value,
        subject.saved.dictionary.d_sae,
        subject.build,
    )


def _shard_contexts(n_dictionaries: int, context_length: int) -> int:
    tokens = max(LEAST_SHARD_TOKENS, BUFFERED_TOKENS // n_dictionaries)
    return max(1, tokens // context_length)


def finished_shards(subjects: Sequence[StoreSubject], per_shard: int) -> int:
    """Whole shards that every subject has; shards of another build are removed."""
    finished = []
    for subject in subjects:
        first = shard_contexts(subject.path(0), subject.build, 0)
        if first is None and subject.folder.exists():
            shutil.rmtree(subject.folder)
        remove_leftovers(subject.folder)
        count = 0
        while shard_contexts(subject.path(count), subject.build, count * per_shard) == per_shard:
            count += 1
        finished.append(count)
    if any(finished):
        logger.info("going on after %d shards of codes that an earlier run left", min(finished))
    return min(finished)
