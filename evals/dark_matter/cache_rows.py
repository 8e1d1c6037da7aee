"""Rows of an activation cache, with the model's losses on the first contexts of its text."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache import open_cache
from saelab.cache.reader import ActivationCache
from saelab.config import from_plain
from saelab.dictionary import SavedDictionary
from saelab.errors import ActivationError, ArtifactError, ConfigError
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.text.contexts import TextConfig, context_batches

from .row_source import BATCH_ROWS, RowBatch, Rows, first_position_of

logger = logging.getLogger(__name__)


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
