"""The gradient of one next token's logit, or log-probability, with respect to activations."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.model.hooked_forward import HookedForward

Quantity = Literal["logit", "log_probability"]
"""What is differentiated: the raw logit, or its log-softmax over the vocabulary in nats."""


def next_token_gradients(
    forward: HookedForward,
    tokens: Int[Tensor, " seq"],
    hook_point: str,
    target: int,
    quantity: Quantity,
) -> tuple[Float[Tensor, "seq d_in"], Float[Tensor, "seq d_in"], float]:
    """Activations, the gradient of the target's logit after the last token, and its value.

    The gradient is the total derivative with respect to the activation at each position.

    Args:
        forward: the model.
        tokens: one context, on the model's device.
        hook_point: TransformerLens name.
        target: the token id that might come next.
        quantity: what is differentiated.
    """
    found: list[Tensor] = []
    is_input = forward.is_input(hook_point)

    def keep(x: Tensor) -> Tensor | None:
        if is_input:
            # Others read this tensor too: leave it alone and differentiate through it.
            found.append(x)
            return None
        found.append(x if x.requires_grad else x.detach().requires_grad_(True))
        # The model goes on with a copy, because it may add to it in place.
        return found[0].clone()

    with torch.enable_grad():
        logits = forward.run(tokens[None], {hook_point: keep}, graph_for=[hook_point])
        assert logits is not None
        last = logits[0, -1]
        last = last.to(torch.promote_types(last.dtype, torch.float32))
        value = last[target] if quantity == "logit" else last.log_softmax(0)[target]
        (gradient,) = torch.autograd.grad(value, found)
    return found[0][0].detach(), gradient[0], float(value.detach())
