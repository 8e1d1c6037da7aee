"""What the suite evaluates: rows of activations with their positions, read as often as needed.

They come from an activation cache, or from the model on held-out text. The paper drops the first
200 positions of every context, which are easier to reconstruct; see `first_position_of`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from saelab.cache.reader import ActivationCache, open_cache
from saelab.config import from_plain
from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import held_out_batches, select
from saelab.errors import ActivationError, ArtifactError, ConfigError
from saelab.model.identity import model_mismatch
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.seeds import keyed_uniforms
from saelab.text.contexts import TextBatch, TextConfig, describe_text, text_batches

from .suite import DarkMatterConfig

logger = logging.getLogger(__name__)

PAPER_FIRST_POSITION = 200
SHORTEST_CONTEXT = 2 * PAPER_FIRST_POSITION
BATCH_ROWS = 4096
N_CELLS = 4
CONTEXT_TRAIN, CONTEXT_TEST = (0, 1), (2, 3)
TOKEN_TRAIN, TOKEN_TEST = (0, 2), (1, 3)
"""Cells: 2 × (context is of the test part) + (token is of the test part)."""

Columns = dict[str, Tensor]
"""Some rows: activations, tokens, sequence, position and loss, as in `RowBatch`."""


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
    cell: Int[Tensor, " rows"]
    """Which part of the splits each row is in; see `cells_of`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluatedRows:
    """A source of rows that can be read any number of times."""

    read: Callable[[], Iterable[Columns]]
    """The rows in reading order, `BATCH_ROWS` or fewer at a time, each time from the first."""
    seed: int
    """Draws the splits."""
    train_fraction: float
    """Share of the contexts, and of the tokens, to fit on."""
    first_position: int
    """Rows at earlier positions are left out."""
    described: dict[str, Any]
    """What the rows are, for the result."""

    def batches(self, device: torch.device | str = "cpu") -> Iterator[RowBatch]:
        """All rows in reading order, `BATCH_ROWS` or fewer at a time, on a device."""
        for columns in self.read():
            cell = cells_of(
                columns["sequence"],
                columns["position"],
                seed=self.seed,
                train_fraction=self.train_fraction,
            )
            on_device = {name: c.to(device) for name, c in {**columns, "cell": cell}.items()}
            yield RowBatch(**on_device | {"activations": on_device["activations"].float()})


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


def cells_of(
    sequence: Int[Tensor, " rows"],
    position: Int[Tensor, " rows"],
    *,
    seed: int,
    train_fraction: float,
) -> Int[Tensor, " rows"]:
    """The cell of each row, 0 to 3, as `CONTEXT_TRAIN` and `TOKEN_TRAIN` group them.

    Args:
        sequence: index of each row's context.
        position: of each row in its context.
        seed: draws both splits.
        train_fraction: expected share of contexts, and of tokens, to fit on.
    """
    context = sequence.cpu().numpy().astype(np.uint64)
    token = (context << np.uint64(32)) + position.cpu().numpy().astype(np.uint64)
    test_context = keyed_uniforms(context, 2 * seed) >= train_fraction
    test_token = keyed_uniforms(token, 2 * seed + 1) >= train_fraction
    return torch.from_numpy(2 * test_context.astype(np.int64) + test_token.astype(np.int64))


class Spill:
    """Named tensors of one batch after another, kept in temporary files and not in memory.

    The suite reads the rows twice, to fit and then to take every row apart; what the model, the
    encoder and pursuit give is too expensive to compute twice.
    """

    def __init__(self, folder: Path, name: str):
        self._folder, self._name, self._n_batches = folder, name, 0

    def append(self, **tensors: Tensor) -> None:
        """Add a batch."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, self._path(self._n_batches))
        self._n_batches += 1

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Every batch as it was added, in order."""
        for index in range(self._n_batches):
            yield load_file(self._path(index))

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._name}-{index:06d}.safetensors"


def in_batches(blocks: Iterable[Columns], n_rows: int) -> Iterator[Columns]:
    """The same rows, `n_rows` at a time; fewer in the last batch."""
    left: Columns = {}
    for block in blocks:
        left = {name: torch.cat([left[name], block[name]]) for name in left} or block
        while len(left["tokens"]) >= n_rows:
            yield {name: column[:n_rows] for name, column in left.items()}
            left = {name: column[n_rows:] for name, column in left.items()}
    if left and len(left["tokens"]):
        yield left


@torch.no_grad()
def rows_of_text(
    model: LanguageModel, spec: DataSpec, config: DarkMatterConfig, folder: Path
) -> EvaluatedRows:
    """Run the model over held-out text once and keep the rows in temporary files.

    Raises:
        ActivationError: activations that are not finite, or no row is left.
        TextError: the held-out text does not fill one context.
    """
    first = first_position_of(config.first_position, spec.context_length)
    spill, n_rows = Spill(folder, "rows"), 0
    # In batches of one size, so that the contexts in a forward pass decide no number.
    for columns in in_batches(_text_blocks(model, spec, config, first), BATCH_ROWS):
        spill.append(**columns)
        n_rows += len(columns["tokens"])
    if n_rows == 0:
        raise ActivationError(
            f"no activation row is left from position {first} on: evaluate more text, give a "
            "smaller --first-position, or relax the token filter"
        )
    if n_rows < config.n_tokens:
        logger.warning(
            "the held-out text gives %d rows of the %d asked for: all of them are used",
            n_rows,
            config.n_tokens,
        )
    return EvaluatedRows(
        read=spill.batches,
        seed=config.seed,
        train_fraction=config.train_fraction,
        first_position=first,
        described={
            "rows": "held-out text",
            "text": describe_text(spec.text),
            "context_length": spec.context_length,
            "seen_in_training": False,
        },
    )


def _text_blocks(
    model: LanguageModel, spec: DataSpec, config: DarkMatterConfig, first_position: int
) -> Iterator[Columns]:
    """The rows of a few contexts at a time, in the model's dtype, until there are enough."""
    n_rows = n_contexts = 0
    with progress_bar(config.n_tokens, "activations", "rows") as bar:
        # As many tokens as could possibly be needed: reading stops when the rows are there.
        for batch in held_out_batches(model, spec, 1 << 60, config.batch_contexts):
            with_loss = max(0, -(-config.n_loss_tokens // spec.context_length) - n_contexts)
            loss = torch.full(batch.tokens.shape, torch.nan, dtype=torch.float64)
            if with_loss:
                loss[:with_loss] = _next_token_losses(model, batch[:with_loss])
            (activations,), where, keep = captured_rows(
                model, [spec], batch, n_contexts, first_position
            )
            kept = {"activations": activations.cpu(), **where, "loss": loss[keep]}
            kept = {name: column[: config.n_tokens - n_rows] for name, column in kept.items()}
            yield kept
            n_contexts += len(batch)
            n_rows += len(kept["tokens"])
            bar.update(len(kept["tokens"]))
            if n_rows >= config.n_tokens:
                return


def _next_token_losses(model: LanguageModel, batch: TextBatch) -> Float[Tensor, "batch seq"]:
    """The loss at predicting the token after each, float64; NaN where none follows."""
    loss = model.run(batch.tokens).loss.double().cpu()
    return pad(loss.masked_fill(~batch.predicted(), torch.nan), (0, 1), value=torch.nan)


def captured_rows(
    model: LanguageModel,
    specs: Sequence[DataSpec],
    batch: TextBatch,
    first_context: int,
    first_position: int,
) -> tuple[list[Float[Tensor, "rows _"]], Columns, Bool[Tensor, "batch seq"]]:
    """Run the model and take the rows that every data spec keeps.

    Returns:
        Activations of each data spec's hook point, in the model's dtype; the rows' tokens,
        sequence and position; which tokens they are.

    Raises:
        ActivationError: activations that are not finite.
    """
    tokens = batch.tokens
    captured = model.capture(tokens, [spec.hook_point for spec in specs])
    position = torch.arange(tokens.shape[1]).expand(tokens.shape)
    keep = position >= first_position
    for spec in specs:
        keep = keep & select(model, spec, batch, captured, first_context)[0].cpu()
    context = torch.arange(len(tokens))[:, None].expand(tokens.shape) + first_context
    columns = {"tokens": tokens.cpu().long(), "sequence": context, "position": position}
    where = {name: column[keep] for name, column in columns.items()}
    return [captured[spec.hook_point][keep] for spec in specs], where, keep


def rows_of_cache(
    folder: Path, saved: SavedDictionary, config: DarkMatterConfig, model: LanguageModel | None
) -> EvaluatedRows:
    """The rows of a cache that count for a dictionary: its norm ceiling leaves out more of them.

    Raises:
        ActivationError: a cache of another hook point or width.
        ArtifactError: a damaged cache, or one of another model.
        ConfigError: a cache that leaves out other rows than the dictionary does.
    """
    cache = open_cache(folder, saved.hook_point, verify=False)
    _check_cache(cache, saved)
    length = int(cache.manifest["context_length"])
    first = first_position_of(config.first_position, length)
    losses = _context_losses(cache, model, config.n_loss_tokens)
    seen = cache.content_hash == saved.made_from.get("cache_hash")
    if seen:
        logger.warning(
            "%s was trained on the rows of %s: its errors there are smaller than on fresh text; "
            "give a cache of other text, or leave --cache away",
            saved.name,
            cache.folder,
        )
    return EvaluatedRows(
        read=partial(_cache_blocks, cache, losses, first, saved.norm_ceiling, config.n_tokens),
        seed=config.seed,
        train_fraction=config.train_fraction,
        first_position=first,
        described={
            "rows": "activation cache",
            "cache_hash": cache.content_hash,
            "text": cache.manifest["text"],
            "context_length": length,
            "seen_in_training": seen,
        },
    )


def _cache_blocks(
    cache: ActivationCache,
    losses: Columns,
    first_position: int,
    norm_ceiling: float | None,
    n_rows: int,
) -> Iterator[Columns]:
    """The first `n_rows` rows from a position on whose norm is not above the ceiling."""
    for start in range(0, cache.n_rows, BATCH_ROWS):
        index = torch.arange(start, min(start + BATCH_ROWS, cache.n_rows))
        read = cache.rows(index, with_context=True, with_gradients=False)
        assert read.tokens is not None
        assert read.sequence is not None
        assert read.position is not None
        keep = read.position >= first_position
        if norm_ceiling is not None:
            keep &= torch.linalg.vector_norm(read.activations, dim=1) <= norm_ceiling
        kept = keep.nonzero().flatten()[:n_rows]
        n_rows -= len(kept)
        where = {
            "tokens": read.tokens[kept].long(),
            "sequence": read.sequence[kept].long(),
            "position": read.position[kept].long(),
        }
        if len(kept):
            yield {
                "activations": read.activations[kept],
                **where,
                "loss": _losses_at(losses, where),
            }
        if n_rows == 0:
            return


def _losses_at(known: Columns, where: Columns) -> Float[Tensor, " rows"]:
    """The loss at predicting the token after each row; NaN where it was not measured.

    Raises:
        ArtifactError: the rows are of another text.
    """
    loss = torch.full(where["tokens"].shape, torch.nan, dtype=torch.float64)
    inside = where["sequence"] < len(known["tokens"])
    index = where["sequence"][inside], where["position"][inside]
    if bool((known["tokens"][index] != where["tokens"][inside]).any()):
        raise ArtifactError(
            "the cache's tokens are not those of the text that its manifest names, so token losses "
            "cannot be matched to its rows: harvest it again, or leave losses away with "
            "--n-loss-tokens 0"
        )
    loss[inside] = known["loss"][index]
    return loss


def _context_losses(cache: ActivationCache, model: LanguageModel | None, n_tokens: int) -> Columns:
    """Tokens and losses of the first contexts of a cache's text, [contexts, seq] each."""
    made_from = cache.manifest["made_from"]
    length = int(made_from["context_length"])
    tokens, losses = [torch.zeros(0, length).long()], [torch.zeros(0, length).double()]
    if model is not None and n_tokens > 0:
        text = from_plain(TextConfig, made_from["text"], f"text settings of {cache.folder}")
        contexts = text_batches(text, model, split="train", context_length=length, batch_contexts=1)
        wanted = min(-(-n_tokens // length), int(cache.manifest["n_contexts"]))
        with progress_bar(wanted, "token losses", "contexts") as bar:
            for context in islice(contexts, wanted):
                tokens.append(context.tokens)
                losses.append(_next_token_losses(model, context))
                bar.update(1)
    return {"tokens": torch.cat(tokens), "loss": torch.cat(losses)}


def _check_cache(cache: ActivationCache, saved: SavedDictionary) -> None:
    if cache.d_in != saved.dictionary.d_in:
        raise ActivationError(
            f"{cache.folder} holds activations of width {cache.d_in}; {saved.folder} takes "
            f"{saved.dictionary.d_in}: give the cache of its own model and hook point"
        )
    differs = model_mismatch(cache.provenance(), saved.made_from)
    if differs is not None:
        raise ArtifactError(
            f"{cache.folder} was harvested from another model than {saved.folder} was trained on "
            f"({differs}): give a cache of its model"
        )
    if cache.manifest["row_rule"] != saved.token_filter:
        raise ConfigError(
            f"{cache.folder} filters tokens by {cache.manifest['row_rule']}, {saved.folder} "
            f"by {saved.token_filter}: harvest a cache with the dictionary's filter, or leave "
            "--cache away"
        )
