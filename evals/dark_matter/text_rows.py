"""Rows of held-out text: the model runs over it once, and the rows wait in temporary files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.dictionary.data_spec import DataSpec, held_out_batches, select
from saelab.errors import ActivationError
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.text.contexts import describe_text

from .row_source import BATCH_ROWS, RowBatch, Rows, first_position_of
from .spill import ColumnSpill

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
