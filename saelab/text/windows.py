"""Text in short contexts of single documents, for what is to be averaged over documents.

One window of every document comes first, then a second of every one, and so on: a long document, or
those that happen to come first, then do not speak for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from math import ceil
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.errors import TextError
from saelab.model.language_model import LanguageModel

from .config import TextConfig
from .contexts import (
    Context,
    TextBatch,
    batch_of,
    check_shape,
    mixed,
    of_split,
    one_per_context,
    sources_of,
    window_of,
)
from .documents import fraction_of
from .tokens import PADDING, Tokeniser

NO_DOCUMENT = {
    "held_out": "is held out, so no loss can be measured",
    "train": "is left beside what is held out: give more text",
}
"""By split, what is wrong with a text that has none of it."""


@dataclass(frozen=True, eq=False)
class DocumentWindows:
    """Short contexts of single documents, and which document each of them is of."""

    text: TextBatch
    document: Int[Tensor, " windows"]
    """Index into `names`."""
    names: tuple[str, ...]
    """What the documents are called where they came from."""


def document_windows(
    config: TextConfig,
    model: LanguageModel,
    *,
    length: int,
    n_windows: int,
    split: Literal["train", "held_out"] = "held_out",
) -> DocumentWindows:
    """A window of every document of a split, then a second of every one, and so on.

    Of more documents than windows the first are read. Which window of a document comes first is
    decided by seed and text; those that padding fills come last.

    Args:
        config: the text.
        model: whose tokenizer and BOS are used.
        length: tokens in a window, BOS included; what is left of a document is padded.
        n_windows: windows wanted; where the text has fewer, all of them are given.
        split: which documents are read.

    Raises:
        TextError: the split has no document.
        ModelError: the windows are longer than the model's contexts, or there is no template for
            a conversation.
    """
    check_shape(model, length, 1, 0)
    streams = [
        (_windows(part, model, length, ceil(share * n_windows), split), share)
        for part, share in sources_of(config)
    ]
    taken = list(islice(mixed(streams), n_windows))
    if not taken:
        raise TextError(f"no document of {config.source} {NO_DOCUMENT[split]}")
    index = {name: at for at, name in enumerate(dict.fromkeys(name for name, _ in taken))}
    return DocumentWindows(
        text=batch_of([context for _, context in taken]),
        document=torch.tensor([index[name] for name, _ in taken]),
        names=tuple(index),
    )


def _windows(
    config: TextConfig, model: LanguageModel, length: int, most: int, split: str
) -> Iterator[tuple[str, Context]]:
    """The windows of one source's documents in turn, each with its document's name."""
    counts: Counter[str] = Counter()
    tokenise = Tokeniser(config, model, counts)
    bos = [] if model.bos_id is None else [model.bos_id]
    by_document: list[list[tuple[str, Context]]] = []
    for document in islice(of_split(config, split, counts), most):
        (tokens,) = tokenise([document])
        tokens = window_of(config, document.text, tokens)
        parts = [*one_per_context(iter([tokens]), model, length - len(bos), counts)]
        first = int(fraction_of(config, "first window", document.text) * len(parts))
        parts = sorted(parts[first:] + parts[:first], key=lambda part: PADDING in part[1])[:most]
        by_document.append(
            [(document.id, (bos + ids, bytes(len(bos)) + states)) for ids, states in parts]
        )
    for nth in zip_longest(*by_document):
        yield from filter(None, nth)
