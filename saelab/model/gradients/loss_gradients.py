"""Activations and the gradient of the summed next-token loss with respect to them.

The graph starts no earlier than it must: at the first hook point, or at the input of its block
where it is what a module reads. Where a probe shows that the logits are a linear head's output and
nothing else, the head is differentiated by hand (`next_token_loss_gradient`); where a second one
finds the same gradients, so are attention and norms (`lean_backward`). Otherwise autograd does all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor, nn

from saelab.model.hooked_forward import HookedForward
from saelab.model.token_loss import LOSS_CHUNK_ELEMENTS, next_token_loss, next_token_loss_gradient

from .attention_backward import AttentionByHand
from .norm_backward import closed_form, rms_epsilon

logger = logging.getLogger(__name__)

Pairs = dict[str, tuple[Tensor, Tensor]]
"""Hook point -> (activations, gradients), each [batch seq d_in]."""

PASS_BYTES = 1 << 30
"""What the graph of one pass may hold, roughly."""
BYTES_PER_ENTRY = 48
"""Roughly what the graph holds per entry of the residual stream of each block (SmolLM2-135M)."""
PROBE_AGREEMENT = 0.2
"""Largest median relative difference per row between the probe's gradients by hand and by autograd
alone. In bfloat16 either has an error of a few hundredths; a mistake would be of the order of 1."""


class LossGradients:
    """Takes gradients with respect to one model's activations.

    Args:
        forward: the model.
    """

    def __init__(self, forward: HookedForward):
        self._forward = forward
        self._n_layers = int(forward.bridge.cfg.n_layers)

    def at(self, tokens: Int[Tensor, "batch seq"], hook_points: Sequence[str]) -> Pairs:
        """Activations and gradients at hook points, a few contexts at a time.

        Args:
            tokens: token ids on the model's device, already checked.
            hook_points: TransformerLens names.

        Raises:
            ModelError: unknown hook point.
        """
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
        found: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> Tensor | None:
            if self._forward.is_input(name):
                # Others read this tensor too: leave it alone and differentiate through it.
                found[name] = x
                return None
            found[name] = x if x.requires_grad else x.detach().requires_grad_(True)
            # The model goes on with a copy, because it may add to it in place.
            return found[name].clone()

        visits = {name: (lambda x, name=name: keep(name, x)) for name in hook_points}
        with torch.enable_grad(), nullcontext() if lean is None else lean.active():
            result = self._forward.run(
                tokens, visits, graph_for=hook_points, stop_at_head=head is not None
            )
        assert result is not None
        wanted = [found[name] for name in hook_points]
        if head is None:
            with torch.enable_grad():
                loss = next_token_loss(result, tokens).sum()
            gradients = torch.autograd.grad(loss, wanted)
        else:
            by_hidden = next_token_loss_gradient(result.detach(), head, tokens)
            gradients = torch.autograd.grad(result, wanted, by_hidden)
        return {
            name: (found[name].detach(), gradient)
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


def _difference(found: Tensor, expected: Tensor) -> float:
    """Median relative difference of the rows that have a gradient."""
    rows, reference = found[:, :-1].float(), expected[:, :-1].float()
    errors = (rows - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(1e-30)
    return float(errors.median())


class LeanBackward:
    """Attention and RMS norms of one model, differentiated with respect to activations only.

    Args:
        model: a model with frozen weights.
    """

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
