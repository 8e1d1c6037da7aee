"""Settings of a harvest: which model, hook points and text, and which positions count as rows.

This module imports no torch, so that a command line can show its help at once; the token filter is
applied to activations in `rows`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from saelab.config import SHUFFLED, Within, local_place, problems_in, to_plain
from saelab.errors import ConfigError
from saelab.text.config import EMBEDDED_TEXT, TextConfig


@dataclass(frozen=True, kw_only=True)
class TokenFilter:
    """Which positions count as rows: the one rule for training and for every metric.

    A few positions hold massive activations that would decide every loss and metric; the defaults
    exclude them, and what was excluded is counted by the first reason that applies.
    """

    exclude_bos: bool = True
    """Exclude position 0 of every context, whatever its token, and BOS tokens anywhere."""
    exclude_separators: bool = True
    """Exclude the tokenizer's other special tokens, such as those between documents."""
    exclude_positions: Annotated[tuple[int, ...], Within(0)] = ()
    """Positions in the context to exclude, counted from 0 (the BOS token is at 0)."""
    max_norm_ratio: Annotated[
        float | Literal["bulk"] | None, Within(1, low_open=True, words=("bulk",))
    ] = "bulk"
    """Exclude rows whose norm is above this many times the median norm; `bulk`: well above where
    the bulk of the norms ends, which a sample tells. None: keep them."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TokenFilter:
        """The rule that a manifest recorded.

        Raises:
            ConfigError: a field of the rule is unknown to this version.
        """
        unknown = set(content) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"token filter with unknown fields {sorted(unknown)}: upgrade saelab")
        positions = tuple(content.get("exclude_positions", ()))
        return cls(**{**content, "exclude_positions": positions})


@dataclass(frozen=True, kw_only=True)
class DataOverrides:
    """What stands in for what a dictionary recorded of its data; None: what it recorded."""

    text_source: str | None = None
    """Text in place of the dictionary's own (a source that `saelab.text` reads). None: its own."""
    text_field: str | None = None
    """Field that holds the text in `text_source`. None: as the dictionary recorded it."""
    context_length: Annotated[int | None, Within(2)] = None
    """Tokens in a context. None: as in training."""
    model: str | None = None
    """Where the dictionary's language model lies, if not under its recorded name. None: there."""
    model_kwargs: tuple[str, ...] | None = None
    """For transformers' loading, each `name=value` or a JSON object. None: as in training."""
    model_dtype: Literal["bfloat16", "float32", "float16"] | None = None
    """Dtype the model computes in. None: as in training."""
    activations: Path | None = None
    """Folder of the adopted caches, for a dictionary of activations from elsewhere. None: where
    they were in training."""
    device: str = "auto"
    """Device of model and dictionary: `auto`, `cpu`, `cuda`."""


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What to harvest: a model's activations at some hook points over some text."""

    model: str = "smollm2-135m"
    """Language model: `smollm2-135m`, a Hugging Face name (owner/model, or owner/model@revision),
    a folder, or a GGUF file."""
    model_kwargs: tuple[str, ...] = ()
    """For transformers' loading, each `name=value` or a JSON object: `device_map=auto` (a model
    larger than one device), `attn_implementation=eager`, `load_in_8bit=true` (bitsandbytes)."""
    hook_points: tuple[str, ...] = ("blocks.12.hook_resid_post",)
    """Hook points to harvest, all in the same forward pass."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text; its training part is read."""
    context_length: Annotated[int, Within(2)] = 256
    """Tokens in a context, BOS included."""
    n_tokens: int | None = 400_000
    """Tokens of text to run, excluded rows included, rounded up to contexts. None: all of it."""
    batch_contexts: Annotated[int, Within(1)] = 16
    """Contexts in one forward pass."""
    model_dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Dtype that the model computes in; bfloat16 is about twice as fast as float32."""
    cache_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype that rows are kept in."""
    device: str = "auto"
    """Device of the model; `auto` takes a GPU where there is one."""
    gradients: bool = False
    """Also keep the gradient of the summed next-token loss with respect to each row; from the
    middle of a model that takes about five times as long."""
    rows: TokenFilter = field(default_factory=TokenFilter)
    """Which positions are kept as rows."""
    contexts_per_shard: Annotated[int, Within(1)] = 256
    """Contexts in one shard, rounded up to whole batches."""

    def __post_init__(self) -> None:
        mixture = tuple((recorded_name(name), share) for name, share in self.text.mixture)
        text = replace(self.text, source=recorded_name(self.text.source), mixture=mixture)
        object.__setattr__(self, "model", recorded_name(self.model))
        object.__setattr__(self, "text", text)
        problems = problems_in(self)
        if not self.hook_points:
            problems.append("hook_points: none given; name at least one")
        if len(set(self.hook_points)) != len(self.hook_points):
            problems.append(f"hook_points: {list(self.hook_points)} names one twice")
        batch_tokens = self.batch_contexts * self.context_length
        if self.n_tokens is not None and self.n_tokens < batch_tokens:
            problems.append(
                f"n_tokens: {self.n_tokens} is below one batch of {batch_tokens} tokens "
                "(batch_contexts x context_length)"
            )
        outside = [p for p in self.rows.exclude_positions if p >= self.context_length]
        if outside:
            problems.append(
                f"rows.exclude_positions: {outside} lie outside a context of "
                f"{self.context_length} tokens (0 to {self.context_length - 1})"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def n_contexts(self) -> int | None:
        """Contexts that `n_tokens` comes to; None for all of the text."""
        return None if self.n_tokens is None else -(-self.n_tokens // self.context_length)

    @property
    def shard_contexts(self) -> int:
        """`contexts_per_shard` rounded up to whole batches, so that a resumed run batches alike."""
        return -(-self.contexts_per_shard // self.batch_contexts) * self.batch_contexts

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values; `model_kwargs` only where there are any, so that
        records of before they were there stay equal."""
        plain = to_plain(self)
        return (
            plain if self.model_kwargs else {k: v for k, v in plain.items() if k != "model_kwargs"}
        )


def recorded_name(name: str) -> str:
    """A model or text as records name it: what is installed by its name, whatever lies in the
    folder under that name; what is local by its absolute path."""
    if name.startswith(SHUFFLED):
        return SHUFFLED + recorded_name(name.removeprefix(SHUFFLED))
    return name if name in (EMBEDDED_TEXT, HarvestConfig.model) else local_place(name)


@dataclass(frozen=True, kw_only=True)
class AdoptConfig:
    """How activations from elsewhere become caches."""

    arrays: tuple[str, ...] = ()
    """Arrays to take of files that hold several, each a hook point. None given: all that are
    floating-point numbers in two or three dimensions."""
    tokens: tuple[Path, ...] = ()
    """Files of token ids, one for each file of activations. None given: arrays named `tokens`,
    `token_ids` or `input_ids` beside the activations, where there are any."""
    hook_point: str | None = None
    """What one array is called as a hook point. None: its name in the file, else `activations`."""
    name: str | None = None
    """What the activations are of, for people, where that is no language model saelab loads."""
    model: str | None = None
    """Language model they are of, which is loaded: its tokenizer shows tokens and tells special
    ones, and `--text-source` lets suites measure what it loses."""
    held_out_fraction: Annotated[float, Within(0, 1, high_open=True)] = 0.1
    """Fraction of the contexts (of the rows, where those are none) that training never sees."""
    seed: int = 0
    """Decides which are held out."""
    cache_dtype: Literal["bfloat16", "float32"] = "float32"
    """Dtype that rows are kept in."""
    rows: TokenFilter = field(default_factory=TokenFilter)
    """Which positions are kept as rows; BOS and separators are known only with `--model`."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        if self.name is not None and self.model is not None:
            problems.append("name: --model says what the activations are of; give one of the two")
        if len(set(self.arrays)) != len(self.arrays):
            problems.append(f"arrays: {list(self.arrays)} names one twice")
        if self.hook_point is not None and len(self.arrays) > 1:
            problems.append("hook_point: one name was given for several arrays: leave it out")
        if problems:
            raise ConfigError(problems)
