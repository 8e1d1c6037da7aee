"""Passes of Hugging Face's own model that harvesting is measured beside; nothing is kept.

`truncated` stops behind the hook point's block, without head and final norm. `loss` is the whole
model and the next-token loss. `autograd` adds the gradient of the summed loss with respect to the
hook point's activations, as PyTorch's autograd takes it from there on. `products` is what no pass
with gradients can leave out: its products with weights, forward and back, and attention forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from saelab.cache.config import HarvestConfig
from saelab.model.model_files import resolve_model

BLOCK = 12
HOOK_POINT = f"blocks.{BLOCK}.hook_resid_post"
LOSS_CONTEXTS = 4
"""Contexts whose logits are held at once, in float32 too."""


def truncated(name: str, dtype: str) -> Callable[[], None]:
    """What caching without gradients has to compute."""
    model, tokens = _model(name, dtype), _tokens()
    body = model.model
    body.layers = body.layers[: BLOCK + 1]
    body.norm = torch.nn.Identity()

    @torch.inference_mode()
    def run() -> None:
        body(input_ids=tokens, use_cache=False)

    return run


def loss(name: str, dtype: str) -> Callable[[], None]:
    """The whole model with its loss, without gradients."""
    model, tokens = _model(name, dtype), _tokens()

    @torch.inference_mode()
    def run() -> None:
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        for rows, ids in zip(hidden.split(LOSS_CONTEXTS), tokens.split(LOSS_CONTEXTS), strict=True):
            _summed_loss(model.lm_head(rows), ids)

    return run


def autograd(name: str, dtype: str) -> Callable[[], None]:
    """The gradient at the hook point by autograd; the blocks before it record nothing."""
    model, tokens = _model(name, dtype), _tokens()
    leaves: list[Tensor] = []

    def start(module: Any, args: Any, output: Tensor) -> Tensor:  # noqa: ARG001
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1]

    model.model.layers[BLOCK].register_forward_hook(start)

    def run() -> None:
        for ids in tokens.split(LOSS_CONTEXTS):
            logits = model(input_ids=ids, use_cache=False).logits
            torch.autograd.grad(_summed_loss(logits, ids), leaves.pop())

    return run


def products(name: str, dtype: str) -> Callable[[], None]:
    """The products alone, on random rows of the right sizes."""
    model, tokens = _model(name, dtype), _tokens()
    blocks = [
        [layer for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
        for block in model.model.layers
    ]
    widths = {width for layer in blocks[0] for width in layer.weight.shape}
    rows = {width: _random(dtype, tokens.numel(), width) for width in widths}
    config = model.config
    size = (tokens.shape[1], config.hidden_size // config.num_attention_heads)
    query = _random(dtype, len(tokens), config.num_attention_heads, *size)
    key, value = (_random(dtype, len(tokens), config.num_key_value_heads, *size) for _ in range(2))
    head = model.lm_head.weight
    hidden = rows[config.hidden_size].split(LOSS_CONTEXTS * tokens.shape[1])

    @torch.inference_mode()
    def run() -> None:
        for layers in blocks:
            functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )
            for layer in layers:
                functional.linear(rows[layer.in_features], layer.weight)
        for part in hidden:
            torch.mm(functional.linear(part, head), head)
        for layers in blocks[BLOCK + 1 :]:
            for layer in layers:
                torch.mm(rows[layer.out_features], layer.weight)

    return run


BARE_PASSES = {"truncated": truncated, "loss": loss, "autograd": autograd, "products": products}


def _model(name: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    folder = resolve_model(name).folder
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    )
    return model.eval().requires_grad_(False)


def _tokens() -> Tensor:
    """One batch of random tokens, as large as the harvest's default."""
    config, generator = HarvestConfig(), torch.Generator().manual_seed(0)
    return torch.randint(
        49_152, (config.batch_contexts, config.context_length), generator=generator
    )


def _random(dtype: str, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))


def _summed_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    rows = logits[:, :-1].flatten(0, 1).float()
    return functional.cross_entropy(rows, tokens[:, 1:].flatten(), reduction="sum")
