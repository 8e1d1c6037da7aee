"""Examples as shown: a window of a context around an anchor, cut into pieces of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from .records import Example
from .token_text import Vocabulary


class Context(NamedTuple):
    """A context of the store's text."""

    tokens: Integer[np.ndarray, " context"]
    """Token ids."""
    counted: Bool[np.ndarray, " context"]
    """Which positions are rows."""


class Windows:
    """Makes examples of one width from contexts."""

    def __init__(self, contexts: Mapping[int, Context], vocabulary: Vocabulary, window: int | None):
        self._contexts = contexts
        self._vocabulary = vocabulary
        self._window = window

    def example(
        self,
        sequence: int,
        anchor: int,
        positions: Integer[np.ndarray, " active"],
        activations: Float[np.ndarray, " active"],
        value: float,
        *,
        other_feature: int | None = None,
        other_value: float | None = None,
    ) -> Example:
        """The window around position `anchor` of a context.

        Args:
            sequence: the context.
            anchor: position the example is about.
            positions: where in the context the feature is active.
            activations: how much.
            value: activation at the anchor.
            other_feature: in a near miss, the feature active there.
            other_value: and how much.
        """
        tokens, counted = self._contexts[sequence]
        start, end = self._bounds(tokens, anchor)
        ids = tokens[start:end].tolist()
        pieces = self._vocabulary.pieces(ids)
        dense = np.zeros(len(tokens), np.float32)
        dense[positions] = activations
        dense, mask = dense[start:end], counted[start:end]
        starts = np.array(pieces.starts[:-1])
        if len(starts) < len(ids):
            dense = np.maximum.reduceat(dense, starts)
            mask = np.logical_or.reduceat(mask, starts)
            bounds = zip(pieces.starts[:-1], pieces.starts[1:], strict=True)
            token_ids = tuple(tuple(ids[a:b]) for a, b in bounds)
        else:
            token_ids = tuple(zip(ids, strict=True))
        return Example(
            sequence=sequence,
            texts=pieces.texts,
            token_ids=token_ids,
            positions=starts + start,
            activations=dense,
            counted=mask,
            anchor=int(np.searchsorted(starts, anchor - start, side="right")) - 1,
            value=value,
            other_feature=other_feature,
            other_value=other_value,
        )

    def token_text(self, token_id: int) -> str:
        """Text of one token."""
        return self._vocabulary.text(token_id)

    def _bounds(self, tokens: Integer[np.ndarray, " context"], anchor: int) -> tuple[int, int]:
        """First and end position, moved outwards past fragments so that no character is cut."""
        if self._window is None:
            return 0, len(tokens)
        start = max(0, anchor - self._window)
        end = min(len(tokens), anchor + self._window + 1)
        is_fragment = self._vocabulary.is_fragment
        while start > 0 and is_fragment(int(tokens[start])) and is_fragment(int(tokens[start - 1])):
            start -= 1
        while (
            end < len(tokens)
            and is_fragment(int(tokens[end]))
            and is_fragment(int(tokens[end - 1]))
        ):
            end += 1
        return start, end
