"""Settings of the suite "core"."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.errors import ConfigError

from ..suite import HeldOutConfig

DEFAULT_LOSS_TOKENS = 16_384
WINDOW = 128
"""Tokens in a window that losses are measured on, BOS included; shorter where contexts are."""


@dataclass(frozen=True, kw_only=True)
class CoreConfig(HeldOutConfig):
    """How much held-out text to evaluate on, how, and where the results go.

    Text, context length, token filter and norm ceiling are the dictionary's own unless overridden
    here, so that training and evaluation mean the same rows.
    """

    PROTOCOL = f"losses in float32, on windows of {WINDOW} tokens by document"
    """What settings do not say, and what tells results apart that were measured otherwise."""

    n_tokens: int = 65_536
    """Tokens of held-out text for reconstruction and sparsity, rounded up to contexts."""
    n_loss_tokens: int | None = None
    """Tokens on which losses and KL are measured (about six times as slow), in windows of 128 that
    every held-out document gives in turn, in float32 unless `model_dtype` is given. None: 16,384,
    or `n_tokens` where that is less."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is below 1"
            for name in ("n_tokens", "n_loss_tokens")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if self.n_loss_tokens is not None and self.n_loss_tokens > self.n_tokens:
            problems.append(
                f"n_loss_tokens: {self.n_loss_tokens} exceeds n_tokens = {self.n_tokens}; losses "
                "are about six times as slow as rows: give more n_tokens too"
            )
        problems += self.problems()
        if problems:
            raise ConfigError(problems)

    @property
    def loss_tokens(self) -> int:
        """`n_loss_tokens` with None resolved."""
        if self.n_loss_tokens is not None:
            return self.n_loss_tokens
        return min(DEFAULT_LOSS_TOKENS, self.n_tokens)
