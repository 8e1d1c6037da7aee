"""What is adopted: arrays of several files that fit together, known by their shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from saelab.errors import ActivationError, ConfigError, did_you_mean
from saelab.progress import progress_bar

from .arrays import ForeignArray, open_arrays
from .config import AdoptConfig, TokenFilter
from .format import HELD_OUT

TOKEN_NAMES = ("tokens", "token_ids", "input_ids")
DEFAULT_HOOK_POINT = "activations"
BLOCK_BYTES = 1 << 24
"""Float32 bytes of one block of all hook points."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The arrays of one file: side by side, with their tokens."""

    path: Path
    hook_points: dict[str, ForeignArray]
    tokens: ForeignArray | None

    @property
    def contexts(self) -> int:
        """How many the file holds."""
        return next(iter(self.hook_points.values())).shape[0]

    def blocks(self, contexts: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Activations [contexts, positions, d_in] by hook point and tokens, 0 without any."""
        readers = [array.blocks(contexts) for array in self.hook_points.values()]
        tokens = None if self.tokens is None else self.tokens.blocks(contexts)
        for blocks in zip(*readers, strict=True):
            shaped = [block if block.ndim == 3 else block[:, None] for block in blocks]
            if tokens is None:
                ids = torch.zeros(shaped[0].shape[:2], dtype=torch.int64)
            else:
                ids = next(tokens).long().reshape(shaped[0].shape[:2])
            yield dict(zip(self.hook_points, shaped, strict=True)), ids


@dataclass(frozen=True, kw_only=True)
class AdoptedSource:
    """Everything that is adopted, and what is known of it before a value is read."""

    parts: list[Part]
    widths: dict[str, int]
    """By hook point."""
    context_length: int
    rule: TokenFilter
    special_ids: frozenset[int]
    bos_id: int | None
    n_tokens_known: int | None
    """Tokens of the vocabulary; None without a model."""
    model: str
    model_hash: str | None

    @property
    def n_contexts(self) -> int:
        """How many all files hold."""
        return sum(part.contexts for part in self.parts)

    @property
    def block(self) -> int:
        """Contexts of a block."""
        return max(1, BLOCK_BYTES // (4 * self.context_length * sum(self.widths.values())))

    def blocks(self, what: str) -> Iterator[tuple[Part, int, dict[str, Tensor], Tensor]]:
        """All blocks: their file, the index of the first context in it, activations, tokens."""
        with progress_bar(self.n_contexts * self.context_length, what, "rows") as bar:
            for part in self.parts:
                first = 0
                for activations, tokens in part.blocks(self.block):
                    yield part, first, activations, tokens
                    first += len(tokens)
                    bar.update(tokens.numel())


def open_source(paths: Sequence[Path], config: AdoptConfig) -> AdoptedSource:
    """Open every file and check that they fit together, by their shapes alone."""
    if not paths:
        raise ConfigError("no file of activations was given: `saelab cache adopt PATH … --out OUT`")
    if config.tokens and len(config.tokens) != len(paths):
        raise ConfigError(
            f"tokens: {len(config.tokens)} files of tokens were given for {len(paths)} of "
            "activations: give one for each, in their order"
        )
    tokens = config.tokens or [None] * len(paths)
    parts = [_open_part(path, ids, config) for path, ids in zip(paths, tokens, strict=True)]
    first = parts[0]
    for part in parts[1:]:
        if list(part.hook_points) != list(first.hook_points):
            raise ActivationError(
                f"{part.path} holds {', '.join(part.hook_points)}; {first.path} holds "
                f"{', '.join(first.hook_points)}: name what both hold with --arrays"
            )
        for name, array in part.hook_points.items():
            if array.shape[1:] != first.hook_points[name].shape[1:]:
                raise ActivationError(
                    f"{array} has rows of shape {list(array.shape[1:])}; {first.path} has "
                    f"{list(first.hook_points[name].shape[1:])}: files that are joined are alike"
                )
        if (part.tokens is None) != (first.tokens is None):
            without = part if part.tokens is None else first
            raise ActivationError(f"{without.path} has no tokens and others have: give all or none")
    shape = next(iter(first.hook_points.values())).shape
    length = shape[1] if len(shape) == 3 else 1
    outside = [position for position in config.rows.exclude_positions if position >= length]
    if outside:
        raise ConfigError(
            f"rows.exclude_positions: {outside} lie outside contexts of {length} positions"
        )
    widths = {name: array.shape[-1] for name, array in first.hook_points.items()}
    return _with_model(parts, widths, length, config)


def _with_model(
    parts: list[Part], widths: dict[str, int], length: int, config: AdoptConfig
) -> AdoptedSource:
    """Add what only a language model knows: which tokens are special, and its content hash."""
    special: frozenset[int] = frozenset()
    bos, known, model_hash = None, None, None
    rule = replace(config.rows, exclude_bos=False, exclude_separators=False)
    name = config.name or f"unnamed ({parts[0].path.name})"
    if config.model is not None:
        from saelab.model.language_model import load_language_model

        model = load_language_model(config.model, dtype="float32", device="cpu")
        for hook_point, width in widths.items():
            if model.width_at(hook_point) != width:
                raise ActivationError(
                    f"{parts[0].path} holds rows of width {width}; {hook_point} of {config.model} "
                    f"has width {model.width_at(hook_point)}: name its own hook point or model"
                )
        # A row by itself is no first position of anything; its token may still be special.
        rule = config.rows if length > 1 else replace(config.rows, exclude_bos=False)
        if parts[0].tokens is not None:
            special, bos = frozenset(model.special_ids), model.bos_id
            known = len(model.token_bytes())
        name, model_hash = config.model, model.content_hash
    return AdoptedSource(
        parts=parts,
        widths=widths,
        context_length=length,
        rule=rule,
        special_ids=special,
        bos_id=bos,
        n_tokens_known=known,
        model=name,
        model_hash=model_hash,
    )


def _open_part(path: Path, tokens: Path | None, config: AdoptConfig) -> Part:
    arrays = {array.name: array for array in open_arrays(path)}
    chosen = [_named(path, arrays, name) for name in config.arrays] or [
        array for array in arrays.values() if array.is_float and len(array.shape) in (2, 3)
    ]
    if not chosen:
        held = ", ".join(f"{array} {list(array.shape)}" for array in arrays.values())
        raise ActivationError(
            f"{path} holds no activations: floating-point numbers [rows, d_in] or [contexts, "
            f"positions, d_in] were expected; it holds {held or 'no array of numbers'}"
        )
    if config.hook_point is not None and len(chosen) > 1:
        held = ", ".join(array.name for array in chosen)
        raise ConfigError(
            f"hook_point: {path} holds several arrays ({held}): choose one with --arrays"
        )
    hook_points: dict[str, ForeignArray] = {}
    for array in chosen:
        if not array.is_float or len(array.shape) not in (2, 3) or 0 in array.shape:
            kind = "floating-point numbers" if array.is_float else "integers"
            raise ActivationError(
                f"{array} is {kind} of shape {list(array.shape)}: floating-point numbers [rows, "
                "d_in] or [contexts, positions, d_in] were expected"
            )
        if array.shape[:-1] != chosen[0].shape[:-1]:
            raise ActivationError(
                f"{array} has {list(array.shape[:-1])} rows and {chosen[0]} has "
                f"{list(chosen[0].shape[:-1])}: they are not side by side; choose with --arrays"
            )
        hook_points[_hook_point(config.hook_point or array.name or DEFAULT_HOOK_POINT)] = array
    if tokens is not None:
        integers = [array for array in open_arrays(tokens) if not array.is_float]
        if len(integers) != 1:
            raise ActivationError(
                f"{tokens} holds {len(integers)} arrays of integers: one is needed"
            )
        ids = integers[0]
    else:
        ids = next((arrays[n] for n in TOKEN_NAMES if n in arrays and not arrays[n].is_float), None)
    if ids is not None and ids.shape != chosen[0].shape[:-1]:
        raise ActivationError(
            f"{ids} has shape {list(ids.shape)}; {list(chosen[0].shape[:-1])} was expected: a "
            "token for each row"
        )
    return Part(path=path, hook_points=hook_points, tokens=ids)


def _named(path: Path, arrays: Mapping[str, ForeignArray], name: str) -> ForeignArray:
    if name not in arrays:
        raise ConfigError(f"arrays: {path} holds no {name!r}; {did_you_mean(name, arrays)}")
    return arrays[name]


def _hook_point(name: str) -> str:
    """A name that can be a folder's.

    Raises:
        ConfigError: it cannot.
    """
    if name in ("", ".", "..", HELD_OUT) or set(name) & set("/\\\0") or len(name) > 200:
        raise ConfigError(
            f"hook_point: {name[:60]!r} cannot be the name of a folder, in which the cache would "
            "lie: give another with --hook-point"
        )
    return name
