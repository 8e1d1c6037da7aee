"""The next-token loss of a language model, and its gradient where the logits are a linear head's.

The gradient by hand needs one product to the logits and one back, a few hundred rows at a time, and
no autograd graph over the logits: with a vocabulary of 49,152 that graph costs more than half of
SmolLM2-135M's blocks do.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

LOSS_CHUNK_ELEMENTS = 1 << 25
"""Logits turned to float32 at a time (128 MB)."""
HEAD_CHUNK_ELEMENTS = 1 << 26
"""Logits held at a time for the gradient, beside as many probabilities (128 MB each in bfloat16).
Products of more rows read the unembedding less often: 1,024 take two thirds of the time of 256."""


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
    parts = [
        functional.cross_entropy(part.to(_loss_dtype(part)), target, reduction="none")
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
    flat = entries.view(-1)
    at_target = torch.arange(len(rows), device=rows.device) * head.out_features + targets
    flat.index_fill_(0, at_target, 0)
    flat.index_copy_(0, at_target, -entries.sum(dim=-1))
    return entries @ head.weight


def _loss_dtype(logits: Tensor) -> torch.dtype:
    """float32, or more where the model computes in more (a test's float64 reference)."""
    return torch.promote_types(logits.dtype, torch.float32)
