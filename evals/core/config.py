"""Settings of the suite "core"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saelab.config import Within

from ..suite import ControlledConfig, more_losses_than_tokens

DEFAULT_LOSS_TOKENS = 16_384
WINDOW = 128
"""Tokens in a window that losses are measured on, BOS included; shorter where contexts are."""


@dataclass(frozen=True, kw_only=True)
class CoreConfig(ControlledConfig):
    """How much held-out text to evaluate on, how, and where the results go.

    Text, context length, token filter and norm ceiling are the dictionary's own unless overridden
    here, so that training and evaluation mean the same rows.
    """

    PROTOCOL = f"losses in float32, on windows of {WINDOW} tokens by document"
    """What settings do not say, and what tells results apart that were measured otherwise."""

    n_tokens: Annotated[int, Within(1)] = 65_536
    """Tokens of held-out text for reconstruction and sparsity, rounded up to contexts."""
    n_loss_tokens: Annotated[int | None, Within(1)] = None
    """Tokens on which losses and KL are measured (about six times as slow), in windows of 128 that
    every held-out document gives in turn, in float32 unless `model_dtype` is given. Padding behind
    short documents counts. None: 16,384, or `n_tokens` where that is less."""

    def problems(self) -> list[str]:
        """More tokens for losses than there are."""
        return more_losses_than_tokens(self.n_loss_tokens, self.n_tokens)

    @property
    def loss_tokens(self) -> int:
        """`n_loss_tokens` with None resolved."""
        if self.n_loss_tokens is not None:
            return self.n_loss_tokens
        return min(DEFAULT_LOSS_TOKENS, self.n_tokens)
