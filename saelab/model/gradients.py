"""Next-token losses, and gradients with respect to activations.

Of a loss, the graph starts no earlier than it must: at the first hook point, or at the input of its
block where it is what a module reads. Where a probe shows that the logits are a linear head's
output and nothing else, the head is differentiated by hand (`next_token_loss_gradient`): one
product to the logits and one back, a few hundred rows at a time, and no autograd graph over the
logits, which with a vocabulary of 49,152 costs more than half of SmolLM2-135M's blocks do. Where a
second probe finds the same gradients, so are attention and norms (`backward_by_hand`). Otherwise
autograd does all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from saelab.errors import ModelError

from .backward_by_hand import AttentionByHand, closed_form, rms_epsilon
from .hooked_forward import HookedForward, Visit

logger = logging.getLogger(__name__)

Pairs = dict[str, tuple[Tensor, Tensor]]
"""Hook point -> (activations, gradients), each [batch seq d_in]."""
Quantity = Literal["logit", "log_probability"]
"""What of a next token is differentiated: the raw logit, or its log-softmax over the vocabulary in
nats."""

LOSS_CHUNK_ELEMENTS = 1 << 25
"""Logits turned to float32 at a time (128 MB)."""
HEAD_CHUNK_ELEMENTS = 1 << 26
"""Logits held at a time for the gradient, beside as many probabilities (128 MB each in bfloat16).
Products of more rows read the unembedding less often: 1,024 take two thirds of the time of 256."""
PASS_BYTES = 1 << 30
"""What the graph of one pass may hold, roughly."""
BYTES_PER_ENTRY = 48
"""Roughly what the graph holds per entry of the residual stream of each block (SmolLM2-135M)."""
PROBE_AGREEMENT = 0.2
"""Largest median relative difference per row between the probe's gradients by hand and by autograd
alone. In bfloat16 either has an error of a few hundredths; a mistake would be of the order of 1."""


def next_token_loss(
    logits: Float[Tensor, "batch seq d_vocab"], tokens: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq-1"]:
    """Cross-entropy of each token given those before it, in nats and float32.

    Goes through the logits a chunk of rows at a time: their float32 copy never exists whole.
    """
    d_vocab = logits.shape[-1]
    rows = rearrange(logits[:, :-1], "context position vocab -> (context position) vocab")
    targets = rearrange(tokens[:, 1:], "context position -> (context position)")
    chunk = max(1, LOSS_CHUNK_ELEMENTS // d_vocab)
    # float32, or more where the model computes in more (a test's float64 reference).
    dtype = torch.promote_types(logits.dtype, torch.float32)
    parts = [
        functional.cross_entropy(part.to(dtype), target, reduction="none")
        for part, target in zip(rows.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(parts).reshape(tokens.shape[0], tokens.shape[1] - 1)


@torch.no_grad()
def next_token_loss_gradient(
    hidden: Float[Tensor, "batch seq d_model"],
    head: nn.Linear,
    tokens: Int[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq d_model"]:
    """Gradient of the summed next-token loss with respect to what the head reads.

    Per row it is (softmax(logits) − onehot(target)) · W_U. The target's entry is taken as minus the
    sum of all others: as p − 1 it would be lost to rounding where the model is sure of the token.
    The last position predicts nothing and has gradient 0.

    Args:
        hidden: input of the head, in the model's dtype.
        head: gives the logits, bias included; nothing comes after it.
        tokens: the contexts.
    """
    contexts, length, width = hidden.shape
    rows = rearrange(hidden[:, :-1], "context position width -> (context position) width")
    targets = rearrange(tokens[:, 1:], "context position -> (context position)")
    gradient = torch.zeros_like(hidden)
    pieces = max(1, -(-rows.shape[0] * head.out_features // HEAD_CHUNK_ELEMENTS))
    parts = [
        _row_gradients(part, head, target)
        for part, target in zip(rows.chunk(pieces), targets.chunk(pieces), strict=True)
    ]
    gradient[:, :-1] = torch.cat(parts).reshape(contexts, length - 1, width)
    return gradient


def _row_gradients(
    rows: Float[Tensor, "rows d_model"], head: nn.Linear, targets: Int[Tensor, " rows"]
) -> Float[Tensor, "rows d_model"]:
    # softmax takes its sums in float32 and rounds each probability once.
    entries = torch.softmax(functional.linear(rows, head.weight, head.bias), dim=-1)
    entries.scatter_(1, targets[:, None], 0)
    entries.scatter_(1, targets[:, None], -entries.sum(dim=-1, keepdim=True))
    return entries @ head.weight


def next_token_gradients(
    forward: HookedForward,
    tokens: Int[Tensor, " seq"],
    hook_point: str,
    target: int,
    quantity: Quantity,
) -> tuple[Float[Tensor, "seq d_in"], Float[Tensor, "seq d_in"], float]:
    """`LanguageModel.next_token_gradients`, with tokens that were checked.

    The gradient is the total derivative with respect to the activation at each position.
    """
    activations, visits = _recording(forward, [hook_point])
    with torch.enable_grad():
        logits = forward.run(tokens[None], visits, graph_for=[hook_point])
        assert logits is not None
        last = logits[0, -1]
        last = last.to(torch.promote_types(last.dtype, torch.float32))
        value = last[target] if quantity == "logit" else last.log_softmax(0)[target]
        (gradient,) = _gradients(value, [hook_point], activations)
    return activations[hook_point][0].detach(), gradient[0], float(value.detach())


def _gradients(
    value: Tensor,
    hook_points: Sequence[str],
    activations: Mapping[str, Tensor],
    by_value: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients with respect to what was kept at hook points.

    Raises:
        ModelError: what a hook point shows is a copy that the model does not go on with.
    """
    wanted = [activations[name] for name in hook_points]
    gradients = torch.autograd.grad(value, wanted, by_value, allow_unused=True)
    lost = [name for name, each in zip(hook_points, gradients, strict=True) if each is None]
    if lost:
        raise ModelError(
            f"the gradient at {', '.join(lost)} cannot be had: this model goes on with another "
            "tensor than the one shown there; use hook_resid_pre or hook_resid_post"
        )
    return gradients


def _recording(
    forward: HookedForward, names: Sequence[str]
) -> tuple[dict[str, Tensor], Mapping[str, Visit]]:
    """Visits that keep activations in the graph, and the dict they put them in."""
    activations: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> Tensor | None:
        if forward.is_input(name):
            # Others read this tensor too: leave it alone and differentiate through it.
            activations[name] = x
            return None
        activations[name] = x if x.requires_grad else x.detach().requires_grad_(True)
        # The model goes on with a copy, because it may add to it in place.
        return activations[name].clone()

    return activations, {name: partial(keep, name) for name in names}


class LossGradients:
    """The gradient of the summed next-token loss with respect to one model's activations."""

    def __init__(self, forward: HookedForward):
        self._forward = forward
        self._n_layers = int(forward.bridge.cfg.n_layers)

    def at(self, tokens: Int[Tensor, "batch seq"], hook_points: Sequence[str]) -> Pairs:
        """`LanguageModel.capture_with_gradients`, with tokens that were checked."""
        if not hook_points:
            return {}
        for name in hook_points:
            self._forward.width_at(name)
        head = self._head if self._forward.ends_before_head(hook_points) else None
        contexts = self._contexts_per_pass(tokens, hook_points, head)
        passes = max(1, -(-len(tokens) // contexts))
        lean = None if head is None else self._lean
        parts = [self._pass(part, hook_points, head, lean) for part in tokens.chunk(passes)]
        return {
            name: (
                torch.cat([part[name][0] for part in parts]),
                torch.cat([part[name][1] for part in parts]),
            )
            for name in hook_points
        }

    def _contexts_per_pass(
        self, tokens: Tensor, hook_points: Sequence[str], head: nn.Linear | None
    ) -> int:
        embeddings = self._forward.plain.get_input_embeddings().weight
        d_vocab, d_model = embeddings.shape
        if head is None:
            # The logits, their float32 copy and both gradients are all kept.
            return max(1, LOSS_CHUNK_ELEMENTS // (tokens.shape[1] * d_vocab))
        blocks = self._n_layers - (self._forward.first_block(hook_points) or 0)
        per_token = BYTES_PER_ENTRY * d_model * max(1, blocks)
        return max(1, PASS_BYTES // (tokens.shape[1] * per_token))

    def _pass(
        self,
        tokens: Tensor,
        hook_points: Sequence[str],
        head: nn.Linear | None,
        lean: LeanBackward | None,
    ) -> Pairs:
        """One pass over all of `tokens`: by autograd alone where `head` is None."""
        activations, visits = _recording(self._forward, hook_points)
        with torch.enable_grad(), nullcontext() if lean is None else lean.active():
            result = self._forward.run(
                tokens, visits, graph_for=hook_points, stop_at_head=head is not None
            )
        assert result is not None
        if head is None:
            with torch.enable_grad():
                loss = next_token_loss(result, tokens).sum()
            gradients = _gradients(loss, hook_points, activations)
        else:
            by_hidden = next_token_loss_gradient(result.detach(), head, tokens)
            gradients = _gradients(result, hook_points, activations, by_hidden)
        return {
            name: (activations[name].detach(), gradient)
            for name, gradient in zip(hook_points, gradients, strict=True)
        }

    @cached_property
    def _head(self) -> nn.Linear | None:
        """The plain model's head, if its output is the logits: then they need no autograd."""
        head = self._forward.linear_head()
        if head is None:
            logger.info("the logits are not a linear layer's: gradients by autograd alone (slower)")
        return head

    @cached_property
    def _lean(self) -> LeanBackward | None:
        """The backward passes by hand, if the probe's gradients agree with autograd's."""
        lean, name = LeanBackward(self._forward.plain), "blocks.0.hook_resid_post"
        tokens = self._forward.probe_tokens
        try:
            by_hand = self._pass(tokens, [name], self._head, lean)[name][1]
        except RuntimeError as error:
            # Some architecture may change in place what the closed forms have to keep.
            logger.info("attention and norms are left to autograd: %s", error)
            return None
        expected = self._pass(tokens, [name], None, None)[name][1]
        if _difference(by_hand, expected) < PROBE_AGREEMENT:
            return lean
        logger.info("attention and norms are left to autograd: the probe's gradients differ")
        return None


def _difference(gradients: Tensor, expected: Tensor) -> float:
    """Median relative difference of the rows that have a gradient."""
    rows, reference = gradients[:, :-1].float(), expected[:, :-1].float()
    errors = (rows - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(1e-30)
    return float(errors.median())


class LeanBackward:
    """Attention and RMS norms of a model with frozen weights, differentiated by hand."""

    def __init__(self, model: nn.Module):
        epsilons = ((module, rms_epsilon(module)) for module in model.modules())
        self._norms = {module: epsilon for module, epsilon in epsilons if epsilon is not None}
        logger.debug("%d RMS norms are differentiated in closed form", len(self._norms))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, the model's forward pass records these backward passes."""
        with ExitStack() as stack:
            stack.enter_context(AttentionByHand())
            for module, epsilon in self._norms.items():
                stack.enter_context(closed_form(module, epsilon))
            yield
