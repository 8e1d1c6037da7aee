"""Settings of the suite "core"."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.errors import ConfigError

from ..suite import HeldOutConfig

DEFAULT_LOSS_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True)
class CoreConfig(HeldOutConfig):
    """How much held-out text to evaluate on, how, and where the results go.

    Text, context length, token filter and norm ceiling are the dictionary's own unless overridden
    here, so that training and evaluation mean the same rows.
    """

    n_tokens: int = 65_536
    """Tokens of held-out text for reconstruction and sparsity, rounded up to contexts."""
    n_loss_tokens: int | None = None
    """Tokens, the first of those, on which losses and KL are measured (about six times as slow).
    None: 16,384, or all of `n_tokens` where that is less."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is below 1"
            for name in ("n_tokens", "n_loss_tokens")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if self.n_loss_tokens is not None and self.n_loss_tokens > self.n_tokens:
            problems.append(
                f"n_loss_tokens: {self.n_loss_tokens} exceeds n_tokens = {self.n_tokens}; losses "
                "are "
                "measured on the first of the same tokens"
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
