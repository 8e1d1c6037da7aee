"""What the suite evaluates: rows of activations with their places, which can be gone over again.

They come from an activation cache (`cache_rows`) or from the model on held-out text (`text_rows`).
The paper drops the first 200 positions of every context, which are easier to reconstruct; see
`first_position_of`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache.reader import ActivationCache, open_cache
from saelab.config import from_plain
from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec, held_out_batches, select
from saelab.errors import ActivationError, ArtifactError, ConfigError
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.text.contexts import TextConfig, context_batches, describe_text

from .spill import ColumnSpill

PAPER_FIRST_POSITION = 200

SHORTEST_CONTEXT = 2 * PAPER_FIRST_POSITION

BATCH_ROWS = 4096


@dataclass(frozen=True, eq=False, kw_only=True)
class RowBatch:
    """Rows with where they come from."""

    activations: Float[Tensor, "rows d_in"]
    """Float32."""
    tokens: Int[Tensor, " rows"]
    """Token ids."""
    sequence: Int[Tensor, " rows"]
    """Index of the context in the text."""
    position: Int[Tensor, " rows"]
    """Position in the context, from 0."""
    loss: Float[Tensor, " rows"]
    """The model's loss at predicting the next token, nats, float64; NaN where not measured."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A source of rows that can be gone over any number of times."""

    read: Callable[[], Iterator[RowBatch]]
    """Starts over each time it is called."""
    d_in: int
    """Width."""
    first_position: int
    """Rows at earlier positions are left out."""
    described: dict[str, Any]
    """What the rows are, for the result."""

    def batches(self) -> Iterator[RowBatch]:
        """All rows in reading order, `BATCH_ROWS` or fewer at a time."""
        return self.read()


def first_position_of(asked: int | None, context_length: int) -> int:
    """The first position that counts: as asked, or the paper's 200 where contexts allow it.

    Contexts allow it if half of them or more is left; in shorter ones every position counts that
    the token filter keeps.

    Raises:
        ConfigError: no position would be left.
    """
    if asked is not None:
        if asked >= context_length:
            raise ConfigError(
                f"first_position: {asked} leaves nothing of contexts of {context_length} tokens; "
                "give a smaller one"
            )
        return asked
    return PAPER_FIRST_POSITION if context_length >= SHORTEST_CONTEXT else 0


N_CELLS = 4

CONTEXT_TRAIN, CONTEXT_TEST = (0, 1), (2, 3)

TOKEN_TRAIN, TOKEN_TEST = (0, 2), (1, 3)

"""Cells: 2 × (context is of the test part) + (token is of the test part)."""


def cells_of(
    sequence: Int[Tensor, " rows"],
    position: Int[Tensor, " rows"],
    *,
    seed: int,
    train_fraction: float,
) -> Int[Tensor, " rows"]:
    """The cell of each row, 0 to 3; see `CONTEXT_TRAIN` and its neighbours.

    Args:
        sequence: index of each row's context.
        position: of each row in its context.
        seed: draws both splits.
        train_fraction: expected share of contexts, and of tokens, to fit on.
    """
    context = sequence.cpu().numpy().astype(np.uint64)
    token = (context << np.uint64(32)) + position.cpu().numpy().astype(np.uint64)
    test_context = _uniform(context, 2 * seed) >= train_fraction
    test_token = _uniform(token, 2 * seed + 1) >= train_fraction
    return torch.from_numpy(2 * test_context.astype(np.int64) + test_token.astype(np.int64))


def _uniform(keys: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in [0, 1) by SplitMix64 of each key under a seed."""
    with np.errstate(over="ignore"):
        z = keys * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % (1 << 63)) * np.uint64(
            0xD1342543DE82EF95
        )
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


logger = logging.getLogger(__name__)


class SpilledRows:
    """Rows that were written to temporary files; see `rows_of_text`."""

    def __init__(self, columns: ColumnSpill):
        self._columns = columns

    def batches(self) -> Iterator[RowBatch]:
        """All rows in reading order."""
        for block in self._columns.blocks(BATCH_ROWS):
            activations = block.pop("activations").float()
            yield RowBatch(activations=activations, **block)


@torch.no_grad()
def rows_of_text(
    model: LanguageModel,
    spec: DataSpec,
    folder: Path,
    *,
    n_rows: int,
    first_position: int | None,
    n_loss_tokens: int,
    batch_contexts: int,
) -> Rows:
    """Run the model over held-out text once and keep the rows in temporary files.

    Args:
        model: of the dictionary.
        data spec: which rows of which text count.
        folder: for the temporary files.
        n_rows: rows to keep; fewer where the text ends.
        first_position: see `first_position_of`.
        n_loss_tokens: losses are measured on so many tokens, the first.
        batch_contexts: contexts in one forward pass.

    Raises:
        ActivationError: activations that are not finite, or no row is left.
        TextError: the held-out text does not fill one context.
    """
    first = first_position_of(first_position, spec.context_length)
    columns = ColumnSpill(folder, "rows")
    n_contexts = 0
    # As many tokens as could possibly be needed: reading stops when the rows are there.
    batches = held_out_batches(model, spec, 1 << 60, batch_contexts)
    with progress_bar(n_rows, "activations", "rows") as bar:
        for tokens in batches:
            with_loss = max(0, -(-n_loss_tokens // spec.context_length) - n_contexts)
            block = _text_block(model, spec, tokens, n_contexts, first, with_loss)
            n_contexts += tokens.shape[0]
            room = n_rows - columns.n_rows
            columns.append(**{name: column[:room] for name, column in block.items()})
            bar.update(min(room, len(block["tokens"])))
            if columns.n_rows >= n_rows:
                break
    if columns.n_rows == 0:
        raise ActivationError(
            f"no activation row is left from position {first} on: evaluate more text, give a "
            "smaller --first-position, or relax the token filter"
        )
    if columns.n_rows < n_rows:
        logger.warning(
            "the held-out text gives %d rows of the %d asked for: all of them are used",
            columns.n_rows,
            n_rows,
        )
    described = {
        "rows": "held-out text",
        "text": describe_text(spec.text),
        "context_length": spec.context_length,
        "seen_in_training": False,
    }
    width = columns.read(0, 1)["activations"].shape[1]
    return Rows(SpilledRows(columns).batches, width, first, described)


def _text_block(
    model: LanguageModel,
    spec: DataSpec,
    tokens: Int[Tensor, "batch seq"],
    first_context: int,
    first_position: int,
    with_loss: int,
) -> dict[str, Tensor]:
    """The rows of a batch of contexts as columns; losses of the first `with_loss` contexts."""
    loss = torch.full(tokens.shape, torch.nan, dtype=torch.float64)
    if with_loss:
        loss[:with_loss, :-1] = model.run(tokens[:with_loss]).loss.double().cpu()
    activations = model.capture(tokens, [spec.hook_point])[spec.hook_point]
    selection = select(model, spec, tokens, activations, first_context)
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    keep = selection.keep.cpu() & (positions >= first_position)
    context = torch.arange(tokens.shape[0])[:, None].expand(tokens.shape) + first_context
    return {
        "activations": activations.cpu()[keep],
        "tokens": tokens.cpu()[keep].long(),
        "sequence": context[keep].long(),
        "position": positions[keep].long(),
        "loss": loss[keep],
    }


class CacheRows:
    """Rows of an activation cache that count for a dictionary.

    Args:
        cache: open.
        first_position: rows at earlier positions are left out.
        norm_ceiling: rows with a larger norm are left out; None leaves out none.
        n_rows: rows to give at most.
        losses: of the first contexts, from `cache_losses`; None: no loss is known.
    """

    def __init__(
        self,
        cache: ActivationCache,
        first_position: int,
        norm_ceiling: float | None,
        n_rows: int,
        losses: ContextLosses | None,
    ):
        self._cache, self._first, self._ceiling = cache, first_position, norm_ceiling
        self._n_rows, self._losses = n_rows, losses

    def batches(self) -> Iterator[RowBatch]:
        """The rows in reading order."""
        left = self._n_rows
        for start in range(0, self._cache.n_rows, BATCH_ROWS):
            if left == 0:
                return
            places = torch.arange(start, min(start + BATCH_ROWS, self._cache.n_rows))
            read = self._cache.rows(places, with_context=True, with_gradients=False)
            assert read.tokens is not None
            assert read.sequence is not None
            assert read.position is not None
            keep = read.position >= self._first
            if self._ceiling is not None:
                keep &= torch.linalg.vector_norm(read.activations, dim=1) <= self._ceiling
            chosen = keep.nonzero().flatten()[:left]
            if len(chosen) == 0:
                continue
            left -= len(chosen)
            tokens, sequence = read.tokens[chosen].long(), read.sequence[chosen].long()
            position = read.position[chosen].long()
            unknown = torch.full((len(chosen),), torch.nan, dtype=torch.float64)
            yield RowBatch(
                activations=read.activations[chosen],
                tokens=tokens,
                sequence=sequence,
                position=position,
                loss=unknown
                if self._losses is None
                else self._losses.at(tokens, sequence, position),
            )


@dataclass(frozen=True, eq=False)
class ContextLosses:
    """Losses of the first contexts of a text, to be looked up by place."""

    tokens: Int[Tensor, "contexts seq"]
    loss: Float[Tensor, "contexts positions"]

    def at(
        self,
        tokens: Int[Tensor, " rows"],
        sequence: Int[Tensor, " rows"],
        position: Int[Tensor, " rows"],
    ) -> Float[Tensor, " rows"]:
        """The loss at predicting the token after each row; NaN beyond these contexts.

        Raises:
            ArtifactError: the rows are of another text.
        """
        found = torch.full(sequence.shape, torch.nan, dtype=torch.float64)
        inside = sequence < len(self.tokens)
        if bool((self.tokens[sequence[inside], position[inside]] != tokens[inside]).any()):
            raise ArtifactError(
                "the cache's tokens are not those of the text that its manifest names, so token "
                "losses cannot be matched to its rows: harvest it again, or leave losses away with "
                "--n-loss-tokens 0"
            )
        known = inside & (position < self.loss.shape[1])
        found[known] = self.loss[sequence[known], position[known]]
        return found


def rows_of_cache(
    folder: Path,
    saved: SavedDictionary,
    *,
    n_rows: int,
    first_position: int | None,
    model: LanguageModel | None,
    n_loss_tokens: int,
) -> Rows:
    """The rows of a cache that count for a dictionary.

    Args:
        folder: of the cache, or of one per hook point.
        saved: the dictionary; its norm ceiling is applied on top of the cache's own token filter.
        n_rows: rows to give at most.
        first_position: see `first_position_of`.
        model: for losses; None: none are measured.
        n_loss_tokens: tokens of the cache's text to measure losses on.

    Raises:
        ActivationError: a cache of another hook point or width.
        ArtifactError: a damaged cache, or one of another model.
        ConfigError: a cache that leaves out other rows than the dictionary does.
    """
    cache = open_cache(folder, saved.hook_point, verify=False)
    _check_cache(cache, saved)
    length = int(cache.manifest["context_length"])
    first = first_position_of(first_position, length)
    losses = None
    if model is not None and n_loss_tokens > 0:
        losses = cache_losses(cache, model, n_loss_tokens)
    seen = cache.content_hash == saved.made_from.get("cache_hash")
    if seen:
        logger.warning(
            "%s was trained on the rows of %s: its errors there are smaller than on fresh text; "
            "give a cache of other text, or leave --cache away",
            saved.name,
            cache.folder,
        )
    return Rows(
        CacheRows(cache, first, saved.norm_ceiling, n_rows, losses).batches,
        cache.d_in,
        first,
        {
            "rows": "activation cache",
            "cache_hash": cache.content_hash,
            "text": cache.manifest["text"],
            "context_length": length,
            "seen_in_training": seen,
        },
    )


def _check_cache(cache: ActivationCache, saved: SavedDictionary) -> None:
    if cache.d_in != saved.dictionary.d_in:
        raise ActivationError(
            f"{cache.folder} holds activations of width {cache.d_in}; {saved.folder} takes "
            f"{saved.dictionary.d_in}: give the cache of its own model and hook point"
        )
    theirs, ours = cache.manifest["made_from"].get("model_hash"), saved.made_from.get("model_hash")
    if theirs != ours:
        raise ArtifactError(
            f"{cache.folder} was harvested from another model than {saved.folder} was trained on "
            f"(content hashes {str(theirs)[:12]}… and {str(ours)[:12]}…): give a cache of its model"
        )
    if cache.manifest["row_rule"] != saved.token_filter:
        raise ConfigError(
            f"{cache.folder} filters tokens by {cache.manifest['row_rule']}, {saved.folder} "
            f"by {saved.token_filter}: harvest a cache with the dictionary's filter, or leave "
            "--cache away"
        )


def cache_losses(cache: ActivationCache, model: LanguageModel, n_tokens: int) -> ContextLosses:
    """The model's losses on the first contexts of a cache's text.

    Raises:
        ConfigError: the cache's text settings are of another version.
    """
    made_from = cache.manifest["made_from"]
    text = from_plain(TextConfig, made_from["text"], f"text settings of {cache.folder}")
    length = int(made_from["context_length"])
    wanted = min(-(-n_tokens // length), int(cache.manifest["n_contexts"]))
    batches = context_batches(text, model, split="train", context_length=length, batch_contexts=1)
    tokens, losses = [], []
    with progress_bar(wanted, "token losses", "contexts") as bar:
        for context in batches:
            if len(tokens) == wanted:
                break
            tokens.append(context)
            losses.append(model.run(context).loss.double().cpu())
            bar.update(1)
    return ContextLosses(torch.cat(tokens), torch.cat(losses))
