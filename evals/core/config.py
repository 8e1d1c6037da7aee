"""Settings of the suite "core"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saelab.errors import ConfigError

DEFAULT_LOSS_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """How much held-out text to evaluate on, how, and where the results go.

    Text, context length, token filter and norm ceiling are the dictionary's own unless overridden
    here, so that training and evaluation mean the same rows.
    """

    n_tokens: int = 65_536
    """Tokens of held-out text for reconstruction and sparsity, rounded up to contexts."""
    n_loss_tokens: int | None = None
    """Tokens, the first of those, on which losses and KL are measured (about six times as slow).
    None: 16,384, or all of `n_tokens` where that is less."""
    batch_contexts: int = 4
    """Contexts in one forward pass; memory grows with it, the numbers do not depend on it."""
    text_source: str | None = None
    """Text in place of the dictionary's own (a source that `saelab.text` reads). None: its own."""
    text_field: str | None = None
    """Field that holds the text in `text_source`. None: as the dictionary recorded it."""
    context_length: int | None = None
    """Tokens in a context. None: as in training."""
    model: str | None = None
    """Where the dictionary's language model lies, if not under its recorded name. None: there."""
    model_dtype: Literal["bfloat16", "float32", "float16"] | None = None
    """Dtype the model computes in. None: as in training."""
    device: str = "auto"
    """Device of model and dictionary: `auto`, `cpu`, `cuda`."""
    out: Path | None = None
    """Folder for the results; one folder per dictionary in it where there are several.
    None: the folder `evals` in each dictionary."""
    overwrite: bool = False
    """Replace an existing result."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is below 1"
            for name in ("n_tokens", "n_loss_tokens", "batch_contexts")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if self.n_loss_tokens is not None and self.n_loss_tokens > self.n_tokens:
            problems.append(
                f"n_loss_tokens: {self.n_loss_tokens} exceeds n_tokens = {self.n_tokens}; losses "
                "are "
                "measured on the first of the same tokens"
            )
        if self.context_length is not None and self.context_length < 2:
            problems.append(f"context_length: {self.context_length} is below 2 tokens")
        if problems:
            raise ConfigError(problems)

    @property
    def loss_tokens(self) -> int:
        """`n_loss_tokens` with None resolved."""
        if self.n_loss_tokens is not None:
            return self.n_loss_tokens
        return min(DEFAULT_LOSS_TOKENS, self.n_tokens)
