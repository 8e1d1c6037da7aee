"""Sparse codes of a text on disk, sorted by latent within each shard: the runs of the sort.

A shard covers a fixed number of contexts. It holds their tokens, which positions are rows, and
every positive code as (row, activation), ordered by latent and then by row, with a pointer per
latent. A range of latents is one slice of each shard, so ranges can be read whatever the size of
the text. A row is the position in the whole text: context × context_length + position in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from saelab.errors import ArtifactError, ConfigError, ResourceError
from saelab.formats.files import (
    TENSOR_SEAL,
    atomic_path,
    seal_tensors,
    unreadable_tensors,
)

ROW_LIMIT = 1 << 32
"""Positions a text may have: rows are stored in 32 bits."""


@dataclass(frozen=True, eq=False)
class ShardText:
    """The contexts of a shard."""

    first_context: int
    """Index of the first of them in the text."""
    tokens: Integer[np.ndarray, "contexts context_length"]
    counted: Bool[np.ndarray, "contexts context_length"]
    """Which positions are rows."""
    excluded: dict[str, int]
    """How many are not, by reason."""
    lengths: Integer[np.ndarray, " contexts"] | None = None
    """Tokens of each context before its padding; None: nothing is padded."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Positive codes of some latents, ordered by latent and then by row."""

    pointer: Integer[np.ndarray, " latents_plus_one"]
    """Where each latent's pairs begin; the last entry is the number of pairs."""
    row: Integer[np.ndarray, " pairs"]
    """Position in the whole text."""
    activation: Float[np.ndarray, " pairs"]
    """The code, float32."""

    def latents(self) -> Integer[np.ndarray, " pairs"]:
        """Each pair's latent, counted from the first of these."""
        return np.repeat(np.arange(len(self.pointer) - 1), np.diff(self.pointer))

    def of(
        self, latent: int
    ) -> tuple[Integer[np.ndarray, " active"], Float[np.ndarray, " active"]]:
        """Rows and codes of the latent of this index."""
        part = slice(self.pointer[latent], self.pointer[latent + 1])
        return self.row[part], self.activation[part]


class ShardPairs(NamedTuple):
    """All pairs of one shard, whose text has `n_rows` positions from `first_row` on."""

    first_row: int
    n_rows: int
    pairs: Pairs


def write_shard(
    path: Path,
    text: ShardText,
    row: Integer[np.ndarray, " pairs"],
    latent: Integer[np.ndarray, " pairs"],
    activation: Float[np.ndarray, " pairs"],
    d_sae: int,
    build: str,
) -> None:
    """Write one shard.

    Args:
        path: file name.
        text: its contexts.
        row: each pair's row, counted from the shard's first position and never falling.
        latent: each pair's latent.
        activation: each pair's code; those that are not positive are left out.
        d_sae: number of latents.
        build: names the build it belongs to, so that no other goes on with it.

    Raises:
        ConfigError: codes that are not finite, or a text longer than rows can say.
    """
    first_context, context_length = text.first_context, text.tokens.shape[1]
    if (first_context + len(text.tokens)) * context_length > ROW_LIMIT:
        raise ConfigError(f"a text of more than {ROW_LIMIT:,} positions: ask for fewer tokens")
    if not np.isfinite(activation).all():
        raise ConfigError(
            f"codes of contexts {first_context} to {first_context + len(text.tokens) - 1} hold a "
            "NaN or an infinity: check the dictionary, or compute the model in float32"
        )
    kept = activation > 0
    row, latent, activation = row[kept], latent[kept], activation[kept]
    order = order_by(latent.astype(np.int64))
    counts = np.bincount(latent, minlength=d_sae)
    first_row = first_context * context_length
    tensors = {
        "tokens": text.tokens.astype(np.int32),
        "counted": text.counted.astype(np.uint8),
        "pointer": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "row": (row[order] + first_row).astype(np.uint32),
        "activation": activation[order].astype(np.float32),
    }
    if text.lengths is not None:
        tensors["length"] = text.lengths.astype(np.int32)
    metadata = {
        "build": build,
        "first_context": str(first_context),
        "excluded": json.dumps(text.excluded),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, seal_tensors(tensors, metadata))


def shard_contexts(path: Path, build: str, first_context: int) -> int | None:
    """Contexts of a finished shard; None where it is missing, damaged or of another build."""
    try:
        metadata, contexts = check_shard(path)
    except ArtifactError:
        return None
    written = metadata.get("build"), metadata.get("first_context")
    return contexts if written == (build, str(first_context)) else None


def check_shard(path: Path) -> tuple[dict[str, str], int]:
    """Read a whole shard and check it against the hash it holds.

    Returns:
        Its metadata and the number of its contexts.

    Raises:
        ArtifactError: missing, unreadable, without a hash, or changed since it was written.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing or no file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable_tensors(path, error) from None
    if metadata.get(TENSOR_SEAL) != seal_tensors(tensors, metadata)[TENSOR_SEAL]:
        raise ArtifactError(
            f"{path} was changed since it was written (its SHA-256 differs): the same `saelab "
            "features` command makes it again"
        )
    return metadata, len(tensors["tokens"])


class Shards:
    """The shards of one dictionary over one text, for reading.

    Args:
        paths: every shard in order.
        d_sae: number of latents.
    """

    def __init__(self, paths: Sequence[Path], d_sae: int):
        self.d_sae = d_sae
        self._paths = list(paths)
        self._files: list[Any] = [safe_open(path, framework="numpy") for path in self._paths]
        self._pointers = [file.get_tensor("pointer") for file in self._files]
        tokens, counted = (
            [file.get_tensor(name) for file in self._files] for name in ("tokens", "counted")
        )
        self._rows = [part.size for part in tokens]
        self.tokens: Integer[np.ndarray, "contexts context_length"] = np.concatenate(tokens)
        """Token ids of the whole text."""
        self.counted: Bool[np.ndarray, "contexts context_length"] = np.concatenate(counted) != 0
        """Which of its positions are rows."""
        lengths = [
            file.get_tensor("length")
            if "length" in file.keys()  # noqa: SIM118
            else np.full(len(part), part.shape[1], np.int32)
            for file, part in zip(self._files, tokens, strict=True)
        ]
        self.lengths: Integer[np.ndarray, " contexts"] = np.concatenate(lengths)
        """Tokens of each context before its padding."""
        self.n_active: Integer[np.ndarray, " d_sae"] = sum(
            (np.diff(pointer) for pointer in self._pointers), start=np.zeros(d_sae, np.int64)
        )
        """Positive codes of each latent."""

        excluded: Counter[str] = Counter()
        for file in self._files:
            excluded.update(json.loads(file.metadata()["excluded"]))
        self.excluded: dict[str, int] = dict(excluded)
        """Positions that are no rows, by reason."""

    @property
    def context_length(self) -> int:
        """Tokens in a context."""
        return self.tokens.shape[1]

    @property
    def n_tokens(self) -> int:
        """Rows: the denominator of densities."""
        return int(self.counted.sum())

    def ranges(self, max_pairs: int, max_latents: int) -> list[tuple[int, int]]:
        """Ranges of latents that together are all, within both limits if it can be."""
        return _stretches(self.n_active.tolist(), max_pairs, max_latents)

    def parts(self, max_pairs: int) -> list[tuple[int, int]]:
        """Stretches of shards, first and end, none with more pairs than that if it can be."""
        return _stretches([int(pointer[-1]) for pointer in self._pointers], max_pairs)

    def every_shard(self, first: int, end: int) -> Iterator[ShardPairs]:
        """All pairs of each of the shards from `first` to before `end`."""
        first_row = sum(self._rows[:first])
        for index in range(first, end):
            file = self._files[index]
            pairs = Pairs(
                self._pointers[index], file.get_tensor("row"), file.get_tensor("activation")
            )
            yield ShardPairs(first_row, self._rows[index], pairs)
            first_row += self._rows[index]

    def pairs(self, start: int, end: int) -> Pairs:
        """Every pair of the latents from `start` to before `end`, merged over the shards."""
        latents, rows, activations = [], [], []
        for file, pointer in zip(self._files, self._pointers, strict=True):
            first, last = int(pointer[start]), int(pointer[end])
            if first < last:
                latents.append(np.repeat(np.arange(end - start), np.diff(pointer[start : end + 1])))
                rows.append(file.get_slice("row")[first:last])
                activations.append(file.get_slice("activation")[first:last])
        counts = self.n_active[start:end]
        pointer = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if not rows:
            return Pairs(pointer, np.zeros(0, np.uint32), np.zeros(0, np.float32))
        latent = np.concatenate(latents)
        if len(latent) >= 1 << 32:
            raise ResourceError(
                f"latents {start} to {end - 1} have {len(latent):,} activations, more than one "
                "sort takes: ask for fewer tokens"
            )
        order = order_by(latent)
        return Pairs(pointer, np.concatenate(rows)[order], np.concatenate(activations)[order])


def order_by(key: Integer[np.ndarray, " pairs"]) -> Integer[np.ndarray, " pairs"]:
    """Indices by a key of 31 bits, equal keys in order; fewer than 2³² of them.

    Key and index in one number: plain integers sort several times as fast as with an argsort.
    """
    return np.sort((key << 32) | np.arange(len(key))) & 0xFFFFFFFF


def indices_of_runs(
    begins: Integer[np.ndarray, " runs"], lengths: Integer[np.ndarray, " runs"]
) -> Integer[np.ndarray, " indices"]:
    """Every index of some runs of consecutive ones, run by run."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - lengths), lengths)


def _stretches(
    counts: Sequence[int], max_sum: int, max_length: int | None = None
) -> list[tuple[int, int]]:
    """Cut a list into stretches, first and end, within a sum and a length where that can be."""
    stretches: list[tuple[int, int]] = []
    start = total = 0
    for index, count in enumerate(counts):
        too_long = max_length is not None and index - start == max_length
        if index > start and (total + count > max_sum or too_long):
            stretches.append((start, index))
            start, total = index, 0
        total += count
    return [*stretches, (start, len(counts))] if counts else stretches
