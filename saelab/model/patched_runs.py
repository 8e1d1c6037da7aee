"""The same prompts run many times with other activations in them, each time only what can change.

Nothing before the first patched position and nothing below the first patched block depends on a
patch. Keys and values of those positions and the residual stream that enters that block are
computed once and shared by every run; logits are computed at one position of each prompt. With a
patch at the last token in the middle of the model a run costs about a fortieth of a whole one
(18 tokens, 30 blocks).

Skipping blocks is probed first: a model whose pass does not survive it is run whole, with equal
results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .hooked_forward import HookedForward, ModuleSide, Visit, attached

logger = logging.getLogger(__name__)

Change = Callable[[Tensor], Tensor]
"""From an activation [batch suffix d_in] to its replacement."""

PROBE_TOLERANCE = 1e-4
"""Largest difference of the probe's logits between a shortened and a whole pass, relative to the
largest logit, in float32; eight bits of mantissa leave 0.03."""


class PatchedRuns:
    """Runs of one batch of right-padded prompts that share what no patch can change.

    Made by `LanguageModel.prepare_patches`, which explains the arguments.

    Attributes:
        first_position: where the activations that a change sees begin; 0 where the model cannot go
            on from a cache of keys.
    """

    def __init__(
        self,
        forward: HookedForward,
        tokens: Int[Tensor, "batch seq"],
        end: Int[Tensor, " batch"],
        hook_points: Sequence[str],
        first_position: int = 0,
    ):
        self._forward = forward
        plain = all(forward.is_plain(name) for name in hook_points)
        self._past = keys_before(forward, tokens, first_position) if plain else None
        self._kept = [(x.keys, x.values) for x in self._past.layers] if self._past else []
        self.first_position = 0 if self._past is None else first_position
        self._tokens = tokens[:, self.first_position :]
        self._end = end - self.first_position
        blocks = {forward.first_block([name]) for name in hook_points} if plain else set()
        starts = sorted(block for block in blocks if block is not None)
        self._residuals = self._entering(
            starts if starts and can_start_at(forward, starts[-1]) else []
        )
        self._short = plain and can_start_at(forward, 0)

    def _entering(self, blocks: Sequence[int]) -> dict[int, Tensor]:
        """The residual stream that enters each of some blocks in the clean run."""
        names = {f"blocks.{block}.hook_resid_pre": block for block in blocks}
        captured = self._forward.capture(self._tokens, list(names), past=self._past)
        self._rewind()
        return {names[name]: residual for name, residual in captured.items()}

    def logits(self, changes: Mapping[str, Change]) -> Float[Tensor, "batch d_vocab"]:
        """Logits at each prompt's end with activations replaced.

        Args:
            changes: hook point -> function from the activation [batch suffix d_in] of the
                positions from `first_position` on to its replacement.
        """
        # A run without a change starts where one with all of them would, so that both are the
        # same arithmetic.
        block = (
            self._forward.first_block(changes) if changes else min(self._residuals, default=None)
        )
        with ExitStack() as stack:
            if block in self._residuals:
                stack.enter_context(started_at(self._forward, block, self._residuals[block]))
            if self._short:
                stack.enter_context(_head_at(self._forward.plain, self._end))
            logits = self._forward.run(self._tokens, changes, past=self._past)
        self._rewind()
        assert logits is not None
        if self._short:
            return logits[:, 0]
        return logits[torch.arange(len(logits), device=logits.device), self._end]

    def _rewind(self) -> None:
        """Take the last run's tokens out of the cache of keys again."""
        if self._past is not None:
            for layer, (keys, values) in zip(self._past.layers, self._kept, strict=True):
                layer.keys, layer.values = keys, values


def new_key_cache(forward: HookedForward) -> Any | None:
    """An empty cache of keys and values; None where the model's cannot be rewound and repeated.

    Sliding windows and recurrent states cannot; models that have them run every position again.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    past = DynamicCache(config=forward.plain.config)
    return past if all(type(layer) is DynamicLayer for layer in past.layers) else None


def keys_before(
    forward: HookedForward, tokens: Int[Tensor, "batch seq"], position: int
) -> Any | None:
    """A cache of the keys of all earlier positions; None where there are none or no cache.

    Some models pass a cache over, so it is looked at after the run. Where every row begins alike,
    one is run for all.
    """
    past = new_key_cache(forward) if 1 <= position < tokens.shape[1] else None
    if past is None:
        return None
    before = tokens[:, :position]
    shared = len(before) > 1 and bool((before == before[:1]).all())
    forward.run(before[:1] if shared else before, {}, past=past)
    if past.get_seq_length() != position:
        return None
    if shared:
        past.batch_repeat_interleave(len(before))
    return past


def capture_after(
    forward: HookedForward, tokens: Int[Tensor, "batch seq"], shared: int, names: Sequence[str]
) -> dict[str, Float[Tensor, "batch rest _"]]:
    """Activations at hook points behind the first `shared` tokens, the same in every row.

    Their keys and values are computed once where the model and the hook points allow it.
    """
    plain = all(forward.is_plain(name) for name in names)
    past = keys_before(forward, tokens[:1], shared) if plain else None
    if past is None:
        return {name: x[:, shared:] for name, x in forward.capture(tokens, names).items()}
    past.batch_repeat_interleave(len(tokens))
    return forward.capture(tokens[:, shared:], names, past=past)


def run_last_position(
    forward: HookedForward,
    tokens: Int[Tensor, "1 seq"],
    name: str,
    visit: Visit,
    n_variants: int,
) -> Float[Tensor, "variants d_vocab"]:
    """Logits at the last position of a context that is run `n_variants` times side by side.

    Nothing before the last token depends on what happens at it, so its keys and values are computed
    once and shared by every variant: with 32 tokens in a context about a thirteenth of the time
    (SmolLM2-135M, bfloat16, one CPU core).

    Args:
        visit: sees the activation [variants 1 d_in] of the last position and returns its
            replacement.
    """
    past = keys_before(forward, tokens, tokens.shape[1] - 1) if forward.is_plain(name) else None
    if past is None:

        def visit_last(x: Float[Tensor, "variants seq d_in"]) -> Tensor:
            replaced = visit(x[:, -1:])
            return x if replaced is None else torch.cat([x[:, :-1], replaced], dim=1)

        logits = forward.run(tokens.expand(n_variants, -1), {name: visit_last})
    else:
        past.batch_repeat_interleave(n_variants)
        logits = forward.run(tokens[:, -1:].expand(n_variants, 1), {name: visit}, past=past)
    assert logits is not None
    return logits[:, -1]


@torch.no_grad()
def can_start_at(forward: HookedForward, block: int) -> bool:
    """Whether a pass that begins with a block, and computes logits at one position only, gives
    the logits of a whole one; tried once per model on a few short contexts.

    A start skips every block before it, so where one works, earlier ones do too.
    """
    known = forward.starts
    if any(works and proven >= block for proven, works in known.items()):
        return True
    if block not in known:
        known[block] = _probe_start(forward, block)
        if not known[block]:
            logger.info("the model cannot start at block %d: patched runs are whole ones", block)
    return known[block]


def _probe_start(forward: HookedForward, block: int) -> bool:
    tokens = forward.probe_tokens
    name = f"blocks.{block}.hook_resid_pre"
    modules = [forward.block_module(index) for index in range(block + 1)]
    if None in modules or not forward.is_plain(name):
        return False
    residuals: list[Tensor] = []
    whole = forward.run(tokens, {name: lambda x: residuals.append(x.clone())})
    end = torch.tensor([0, tokens.shape[1] - 1, 1], device=tokens.device)
    with started_at(forward, block, residuals[0]), _head_at(forward.plain, end):
        short = forward.run(tokens, {})
    assert whole is not None
    assert short is not None
    if short.shape[:2] != (len(tokens), 1):
        return False
    expected = whole[torch.arange(len(end)), end].float()
    slack = PROBE_TOLERANCE if whole.dtype in (torch.float32, torch.float64) else 0.03
    return bool((short[:, 0].float() - expected).abs().max() <= slack * expected.abs().max())


@contextmanager
def started_at(
    forward: HookedForward, block: int, residual: Float[Tensor, "batch seq d_model"]
) -> Iterator[None]:
    """Let passes of the plain model skip the blocks before `block`, which then reads `residual`.

    The skipped modules stay in the model, because models number keys and masks by them.
    """

    skipped = [forward.block_module(index) for index in range(block)]
    first = forward.block_module(block)
    assert first is not None
    shells = [module for module in skipped if module is not None]
    as_tuple = forward.blocks_return_tuples
    try:
        for module in shells:
            module.__dict__["forward"] = _pass_tuple_on if as_tuple else _pass_on
        with attached(ModuleSide(first, is_input=True), lambda x: residual.clone()):  # noqa: ARG005
            yield
    finally:
        for module in shells:
            module.__dict__.pop("forward", None)


def _pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG001
    return hidden_states


def _pass_tuple_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:  # noqa: ARG001
    return (hidden_states,)


def _head_at(plain: Any, positions: Int[Tensor, " batch"]) -> AbstractContextManager[None]:
    """Let the head read one position of each row; most of a short run's work is its head."""

    def pick(x: Tensor) -> Tensor:
        rows = torch.arange(len(x), device=x.device)
        return x[rows, positions.to(x.device)][:, None]

    return attached(ModuleSide(plain.get_output_embeddings(), is_input=True), pick)
