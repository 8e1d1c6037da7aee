"""Settings of a harvest: which model, hook points and text, and which rows are kept.

This module imports no torch, so that a command line can show its help at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from saelab.errors import ConfigError
from saelab.text.sources import TextConfig

from .token_filter import TokenFilter

ModelDtype = Literal["bfloat16", "float32", "float16"]
CacheDtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What to harvest: a model's activations at some hook points over some text."""

    model: str = "smollm2-135m"
    """Language model: `smollm2-135m`, a Hugging Face name, a folder, or a GGUF file."""
    hook_points: tuple[str, ...] = ("blocks.12.hook_resid_post",)
    """Hook points to harvest, all in the same forward pass."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text; its training part is read."""
    context_length: int = 256
    """Tokens in a context, BOS included."""
    n_tokens: int | None = 400_000
    """Tokens of text to run, excluded rows included, rounded up to contexts. None: all of it."""
    batch_contexts: int = 16
    """Contexts in one forward pass."""
    model_dtype: ModelDtype = "bfloat16"
    """Dtype that the model computes in; bfloat16 is about twice as fast as float32."""
    cache_dtype: CacheDtype = "bfloat16"
    """Dtype that rows are kept in."""
    device: str = "auto"
    """Device of the model; `auto` takes a GPU where there is one."""
    gradients: bool = False
    """Also keep the gradient of the summed next-token loss with respect to each row; from the
    middle of a model that takes about five times as long."""
    rows: TokenFilter = field(default_factory=TokenFilter)
    """Which positions are kept as rows."""
    contexts_per_shard: int = 256
    """Contexts in one shard, rounded up to whole batches."""

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        problems = []
        if not self.hook_points:
            problems.append("hook_points: none given; name at least one")
        if len(set(self.hook_points)) != len(self.hook_points):
            problems.append(f"hook_points: {list(self.hook_points)} names one twice")
        if self.context_length < 2:
            problems.append(f"context_length: {self.context_length} is below 2 tokens")
        for name in ("batch_contexts", "contexts_per_shard"):
            if getattr(self, name) < 1:
                problems.append(f"{name}: {getattr(self, name)} is below 1")
        batch_tokens = self.batch_contexts * self.context_length
        if self.n_tokens is not None and self.n_tokens < batch_tokens:
            problems.append(
                f"n_tokens: {self.n_tokens} is below one batch of {batch_tokens} tokens "
                "(batch_contexts x context_length)"
            )
        for name, kind in (("model_dtype", ModelDtype), ("cache_dtype", CacheDtype)):
            if getattr(self, name) not in get_args(kind):
                problems.append(f"{name}: {getattr(self, name)!r} is not one of {get_args(kind)}")
        outside = [p for p in self.rows.exclude_positions if p >= self.context_length]
        if outside:
            problems.append(
                f"rows.exclude_positions: {outside} lie outside a context of "
                f"{self.context_length} tokens (0 to {self.context_length - 1})"
            )
        return problems

    @property
    def n_contexts(self) -> int | None:
        """Contexts that `n_tokens` comes to; None for all of the text."""
        return None if self.n_tokens is None else -(-self.n_tokens // self.context_length)

    @property
    def shard_contexts(self) -> int:
        """`contexts_per_shard` rounded up to whole batches, so that a resumed run batches alike."""
        return -(-self.contexts_per_shard // self.batch_contexts) * self.batch_contexts

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return json.loads(json.dumps(asdict(self), default=str))
