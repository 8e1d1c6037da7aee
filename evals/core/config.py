"""Settings of the suite "core"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saelab.config import Within

from ..suite import HeldOutConfig, more_losses_than_tokens

DEFAULT_LOSS_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True)
class CoreConfig(HeldOutConfig):
    """How much held-out text to evaluate on, how, and where the results go.

    Text, context length, token filter and norm ceiling are the dictionary's own unless overridden
    here, so that training and evaluation mean the same rows.
    """

    n_tokens: Annotated[int, Within(1)] = 65_536
    """Tokens of held-out text for reconstruction and sparsity, rounded up to contexts."""
    n_loss_tokens: Annotated[int | None, Within(1)] = None
    """Tokens, the first of those, on which losses and KL are measured (about six times as slow).
    None: 16,384, or all of `n_tokens` where that is less."""

    def problems(self) -> list[str]:
        """More tokens for losses than there are."""
        return more_losses_than_tokens(self.n_loss_tokens, self.n_tokens)

    @property
    def loss_tokens(self) -> int:
        """`n_loss_tokens` with None resolved."""
        if self.n_loss_tokens is not None:
            return self.n_loss_tokens
        return min(DEFAULT_LOSS_TOKENS, self.n_tokens)
