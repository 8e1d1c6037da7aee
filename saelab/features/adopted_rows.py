"""Features of adopted activations: codes of rows that lie in caches, and what the rows are called.

Where the rows have tokens, contexts are shown as text like a language model's. Else, and where the
user gives labels, every row is a context of its own, and its label is its only token: a sentence, a
class, the path of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Integer

from saelab.cache.format import ADOPTED_KEY
from saelab.cache.reader import ActivationCache
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import AnyCache, open_adopted
from saelab.errors import Stopped
from saelab.interrupts import stop_on_signals
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar

from .config import FeaturesConfig
from .row_labels import read_labels
from .schema import check_context_length
from .shards import Shards, ShardText
from .text_pass import StoreSubject, finished_shards, write_codes
from .token_text import Vocabulary

BATCH_ROWS = 4096
LEFT_OUT = "[left out]"
"""Shown at positions whose rows the cache left out: their tokens are not in it."""
MOST_NAMED_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class RowText:
    """What is shown in place of a text: contexts of tokens, and which rows of the cache they are.

    The rows of context i are `first_row[i]` to `first_row[i + 1]`, its counted positions in order.
    """

    caches: AnyCache
    tokens: Integer[np.ndarray, "contexts context_length"]
    counted: Bool[np.ndarray, "contexts context_length"]
    first_row: Integer[np.ndarray, " contexts_plus_one"]
    excluded: dict[str, int]
    """Rows that adopting left out, by reason; nothing where only a part is read."""
    vocabulary: Vocabulary


def read_rows(spec: DataSpec, config: FeaturesConfig, model: LanguageModel | None) -> RowText:
    """Find the rows that features are read on, and their tokens or labels.

    Args:
        spec: of the dictionaries.
        config: how many, and which labels.
        model: whose tokenizer the tokens are of; None where no model is known.

    Raises:
        ArtifactError: the caches are not there, or of other rows.
        ConfigError: labels that do not fit.
    """
    caches, first = open_adopted(spec, held_out=config.split == "held_out")
    origin = first.manifest["made_from"][ADOPTED_KEY]
    stop = min(first.n_rows, config.n_tokens)
    sequence, position, tokens = (
        _column(first, name, stop) for name in ("sequence", "position", "tokens")
    )
    whole = dict(first.excluded) if stop == first.n_rows else {}
    if origin["has_tokens"] and config.labels is None:
        check_context_length(spec.context_length)
        starts = np.flatnonzero(np.diff(sequence, prepend=-1))
        pointer = np.append(starts, len(sequence))
        context = np.repeat(np.arange(len(starts)), np.diff(pointer))
        left_out = int(tokens.max()) + 1 if model is None else len(model.token_bytes())
        shown = np.full((len(starts), spec.context_length), left_out, np.int64)
        counted = np.zeros(shown.shape, bool)
        shown[context, position], counted[context, position] = tokens, True
        return RowText(
            caches=caches,
            tokens=shown,
            counted=counted,
            first_row=pointer,
            excluded=whole,
            vocabulary=_token_vocabulary(model, left_out),
        )
    places = sequence * origin["positions"] + position
    if config.labels is None:
        names = _default_labels(origin, sequence, position)
    else:
        labels = read_labels(
            config.labels, config.label_column, origin["contexts"], origin["positions"]
        )
        names = [labels[row] for row in places.tolist()]
    return RowText(
        caches=caches,
        tokens=np.arange(stop)[:, None],
        counted=np.ones((stop, 1), bool),
        first_row=np.arange(stop + 1),
        excluded=whole,
        vocabulary=Vocabulary([name.encode("utf-8", "replace") for name in names]),
    )


def _column(cache: ActivationCache, name: str, stop: int) -> Integer[np.ndarray, " rows"]:
    """A column of the first rows."""
    parts = [
        cache.column(name, start, min(end, stop)).numpy()
        for start, end in pairwise(cache.shard_starts)
        if start < stop
    ]
    return np.concatenate(parts).astype(np.int64)


def _token_vocabulary(model: LanguageModel | None, left_out: int) -> Vocabulary:
    if model is not None:
        return Vocabulary([*model.token_bytes(), LEFT_OUT.encode()])
    if left_out > MOST_NAMED_TOKENS:
        return Vocabulary([])
    return Vocabulary([*(f"[{token}]".encode() for token in range(left_out)), LEFT_OUT.encode()])


def _default_labels(
    origin: dict[str, Any], sequence: np.ndarray, position: np.ndarray
) -> list[str]:
    """ "row 17 of embeddings.npy" for rows that nobody named."""
    files = origin["files"]
    ends = [*accumulate(file["contexts"] for file in files)]
    which = np.searchsorted(ends, sequence, side="right")
    starts = np.array([0, *ends])
    labels = []
    for file, row, at in zip(
        which.tolist(), (sequence - starts[which]).tolist(), position.tolist(), strict=True
    ):
        where = f"row {row}" if origin["positions"] == 1 else f"context {row} position {at}"
        labels.append(f"{where} of {files[file]['name']}")
    return labels


@torch.no_grad()
def encode_rows(
    text: RowText, subjects: Sequence[StoreSubject], device: torch.device
) -> list[Shards]:
    """Write every dictionary's codes of the rows, or finish what was begun.

    Raises:
        ActivationError: rows that are not finite.
        Stopped: a signal asked to stop; the same command goes on.
        ResourceError: the disk is full.
    """
    per_shard = subjects[0].shard_contexts
    n_contexts = len(text.tokens)
    done = finished_shards(subjects, per_shard)
    n_shards = -(-n_contexts // per_shard)
    with (
        stop_on_signals() as stop,
        progress_bar(n_contexts, "reading rows", "contexts", initial=done * per_shard) as bar,
    ):
        for index in range(done, n_shards):
            if stop:
                raise Stopped(
                    f"stopped by {stop.signal_name} after {index * per_shard} contexts: the same "
                    "command goes on from there",
                    stop.signal_name,
                )
            contexts = slice(index * per_shard, min((index + 1) * per_shard, n_contexts))
            counted = text.counted[contexts]
            cell = np.flatnonzero(counted)
            rows = torch.arange(text.first_row[contexts.start], text.first_row[contexts.stop])
            for subject in subjects:
                subject.pairs.clear()
            for start in range(0, len(rows), BATCH_ROWS):
                part = slice(start, start + BATCH_ROWS)
                batch = text.caches.rows(rows[part], with_gradients=False).activations.to(device)
                for subject in subjects:
                    codes = subject.saved.dictionary.encode(batch)
                    subject.pairs.append(
                        (
                            cell[part][codes.pair_rows().cpu().numpy()],
                            codes.latent.cpu().numpy(),
                            codes.value.cpu().numpy(),
                        )
                    )
            excluded = text.excluded if index == 0 else {}
            shard = ShardText(contexts.start, text.tokens[contexts], counted, excluded)
            for subject in subjects:
                write_codes(subject, index, shard)
            bar.update(len(counted))
    return [
        Shards([subject.path(number) for number in range(n_shards)], subject.saved.dictionary.d_sae)
        for subject in subjects
    ]
