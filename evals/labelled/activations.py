"""Activations of labelled text at a dictionary's hook points, kept as activation caches.

A cache for each data set and hook point lies in a folder named by what decides its rows: model,
texts, pooling, tokens. Every dictionary, suite and later run reads it instead of running the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from saelab.cache.config import TokenFilter
from saelab.cache.format import MANIFEST_NAME, new_cache_manifest
from saelab.cache.harvest import Rows
from saelab.cache.hook_folder import HookFolder, remove_cache
from saelab.cache.reader import open_cache
from saelab.config import to_plain
from saelab.dictionary import Dictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import hash_of, read_json
from saelab.formats.lock import writer_lock
from saelab.model.identity import identity_of
from saelab.model.language_model import LanguageModel
from saelab.model.model_files import cache_folder

from .examples import Examples

Pooling = Literal["last", "mean"]
ROW_RULE = TokenFilter(max_norm_ratio=None)
ENCODED_ROWS = 2048
FOLDER = "labelled"


@dataclass(frozen=True, eq=False)
class ExampleRows:
    """Activations of the tokens that count, by example."""

    rows: Float[Tensor, "rows d_in"]
    """Float32, several hook points side by side."""
    example: Int[Tensor, " rows"]
    """Index of the example of each row, ascending."""
    content_hash: str
    """Of the caches they were read from."""

    @property
    def n_examples(self) -> int:
        """Examples; each has a row at least."""
        return int(self.example[-1]) + 1

    @property
    def counts(self) -> Int[Tensor, " examples"]:
        """Rows of each example."""
        return self.example.bincount(minlength=self.n_examples)

    def pooled(self) -> Float[np.ndarray, "examples d_in"]:
        """The mean of each example's rows, float64."""
        sums = torch.zeros(self.n_examples, self.rows.shape[1], dtype=torch.float64)
        sums.index_add_(0, self.example, self.rows.double())
        return (sums / self.counts[:, None]).numpy()


@torch.no_grad()
def pooled_codes(dictionary: Dictionary, examples: ExampleRows) -> sparse.csr_array:
    """The mean of each example's codes, in units of the activations, float64.

    Every row is encoded, and codes are pooled: latents of a pooled activation would be others.

    Returns:
        [examples d_sae], sparse.
    """
    device = next(iter(dictionary.state_dict().values())).device
    parts = []
    for start in range(0, len(examples.rows), ENCODED_ROWS):
        codes = dictionary.encode(examples.rows[start : start + ENCODED_ROWS].to(device))
        of_row = examples.example[start : start + ENCODED_ROWS]
        parts.append(
            (
                codes.scaled_values().double().cpu().numpy(),
                of_row[codes.pair_rows().cpu()].numpy(),
                codes.latent.cpu().numpy(),
            )
        )
    value, example, latent = (np.concatenate(column) for column in zip(*parts, strict=True))
    value = value / examples.counts.numpy()[example]
    shape = (examples.n_examples, dictionary.d_sae)
    summed = sparse.coo_array((value, (example, latent)), shape=shape).tocsr()
    summed.eliminate_zeros()
    return summed


@dataclass(frozen=True, kw_only=True)
class ActivationStore:
    """Where the activations of one model are kept, and how they are made."""

    folder: Path | None
    """Folder of all of them; None: in the user's cache folder."""
    model: LanguageModel
    """Runs over texts whose activations are not there."""
    pooling: Pooling
    """`last`: the last token of each text, of whose tokens the last are read. `mean`: all tokens
    but the start token, of the first."""
    max_tokens: int
    """Tokens of a text that the model reads."""
    batch_tokens: int
    """Tokens in one forward pass."""

    @property
    def root(self) -> Path:
        """The folder."""
        return cache_folder() / FOLDER if self.folder is None else self.folder

    def rows_of(self, examples: Examples, hook_points: Sequence[str]) -> ExampleRows:
        """The activations of examples at hook points, side by side.

        Raises:
            ArtifactError: what is kept was damaged.
            ConfigError: more tokens than the model reads.
            ResourceError: the disk is full.
        """
        folders = {name: self.folder_of(examples, name) for name in hook_points}
        if any(not _complete(folder) for folder in folders.values()):
            with writer_lock(next(iter(folders.values()))):
                missing = {n: f for n, f in folders.items() if not _complete(f)}
                if missing:
                    self._write(examples, missing)
        try:
            caches = [open_cache(folder) for folder in folders.values()]
        except ArtifactError as error:
            raise ArtifactError(f"{error}; or delete its folder, and it is made again") from None
        every = torch.arange(caches[0].n_rows)
        read = [cache.rows(every, with_context=True) for cache in caches]
        assert read[0].sequence is not None
        return ExampleRows(
            rows=torch.cat([part.activations for part in read], dim=1),
            example=read[0].sequence,
            content_hash=hash_of([cache.content_hash for cache in caches]),
        )

    def folder_of(self, examples: Examples, hook_point: str) -> Path:
        """Where the activations of examples at a hook point lie."""
        key = hash_of(self._made_from(examples, hook_point) | {"texts": examples.content_hash})
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in examples.name)
        return self.root / f"{name[:60]}-{key[:16]}"

    def _made_from(self, examples: Examples, hook_point: str) -> dict[str, Any]:
        return {
            "hook_point": hook_point,
            "text": {"source": f"labelled: {examples.name}", "content_hash": examples.set_hash},
            "text_hash": examples.content_hash,
            "context_length": 1 if self.pooling == "last" else self.max_tokens,
            "row_rule": to_plain(ROW_RULE),
            "norm_ceiling": None,
            "model": self.model.name,
            **identity_of(self.model),
            "prepend_bos": self.model.bos_id is not None,
            "model_dtype": str(self.model.dtype).removeprefix("torch."),
            "labelled": {"pooling": self.pooling, "max_tokens": self.max_tokens},
        }

    def _write(self, examples: Examples, folders: Mapping[str, Path]) -> None:
        """Run the model over the examples and write a cache for each hook point."""
        if self.max_tokens > self.model.max_context:
            raise ConfigError(
                f"max_tokens: {self.max_tokens} is more than the {self.model.max_context} tokens "
                f"that {self.model.name} takes"
            )
        parts: dict[str, dict[int, Tensor]] = {name: {} for name in folders}
        contexts = self._contexts(examples)
        first = 0 if self.model.bos_id is None else 1
        for indices in self._batches([len(ids) for ids in contexts]):
            longest = max(len(contexts[index]) for index in indices)
            tokens = torch.tensor(
                [contexts[i] + contexts[i][-1:] * (longest - len(contexts[i])) for i in indices]
            )
            captured = self.model.capture(tokens.to(self.model.device), [*folders])
            for name, activations in captured.items():
                for index, row in zip(indices, activations.float().cpu(), strict=True):
                    stop = len(contexts[index])
                    start = stop - 1 if self.pooling == "last" else first
                    parts[name][index] = row[start:stop].clone()
        for name, folder in folders.items():
            rows = [parts[name][index] for index in range(len(contexts))]
            self._write_cache(folder, self._made_from(examples, name), rows, contexts)

    def _contexts(self, examples: Examples) -> list[list[int]]:
        """The tokens of each text that are read, with the start token, if the model has one."""
        start = [] if self.model.bos_id is None else [self.model.bos_id]
        room = self.max_tokens - len(start)
        part = slice(-room, None) if self.pooling == "last" else slice(room)
        contexts = [start + ids[part] for ids in self.model.tokenize(examples.texts)]
        empty = [i for i, ids in enumerate(contexts) if len(ids) == len(start)]
        if empty:
            raise ConfigError(
                f"text {examples.texts[empty[0]]!r} of {examples.name} has no token of "
                f"{self.model.name}: leave it out"
            )
        return contexts

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Examples of about one length, as many as fit; an encoder's of exactly one, for padding
        would change what it reads."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lengths.__getitem__):
            full = (len(batch) + 1) * lengths[index] > self.batch_tokens
            other = bool(batch) and lengths[batch[0]] != lengths[index]
            if batch and (full or (other and self.model.is_encoder)):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _write_cache(
        self,
        folder: Path,
        made_from: dict[str, Any],
        rows: Sequence[Tensor],
        contexts: Sequence[Sequence[int]],
    ) -> None:
        if folder.is_dir():
            remove_cache(folder)
        counts = torch.tensor([len(part) for part in rows])
        lengths = [len(ids) for ids in contexts]
        ends = [
            torch.arange(length - len(part), length)
            for part, length in zip(rows, lengths, strict=True)
        ]
        manifest = new_cache_manifest(
            made_from,
            seed=0,
            config=made_from["labelled"],
            d_in=rows[0].shape[1],
            dtype="float32",
            text=made_from["text"],
            bos_rule="the start token, then the text; a context for each example",
            n_tokens_requested=None,
            resumable=False,
        )
        writing = HookFolder(folder, manifest, len(rows))
        writing.save_manifest()
        writing.add(
            Rows(
                activations=torch.cat([*rows]),
                gradients=None,
                tokens=torch.cat(
                    [torch.tensor(ids)[at] for ids, at in zip(contexts, ends, strict=True)]
                ),
                sequence=torch.arange(len(rows)).repeat_interleave(counts),
                position=torch.cat(ends),
                excluded={},
            )
        )
        writing.commit(len(rows))
        writing.finish()


def _complete(folder: Path) -> bool:
    path = folder / MANIFEST_NAME
    return path.is_file() and read_json(path).get("status") == "complete"
