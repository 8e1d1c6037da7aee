"""The way from the residual stream to the logits: final norm's gain, then the unembedding.

Models are held with their raw weights, so nothing has folded the norm into the unembedding: the
unembedding alone would leave out the gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CENTRING_TOLERANCE = 0.02
"""Relative change of a norm's output that rounding makes when its input is shifted."""


@dataclass(frozen=True, eq=False)
class Lens:
    """The way from the residual stream to the logits, the norm's division left out."""

    gain: Float[Tensor, " d_model"]
    """Gain of the final norm; ones where there is none."""
    centres_input: bool
    """Whether the final norm subtracts the mean of its input (layer norm)."""
    unembedding: Float[Tensor, "d_vocab d_model"]
    """Unembedding as the model has it, not centred."""

    def describe(self) -> str:
        """What a look through it means, for a manifest."""
        centred = "decoder row centred (layer norm), " if self.centres_input else "decoder row "
        return (
            f"{centred}multiplied by the gain of the final norm, through the unembedding centred "
            "over the vocabulary; the norm's division is left out"
        )


@torch.no_grad()
def lens_of(plain: Any, final_norm: Any) -> Lens:
    """The lens of a Hugging Face causal language model.

    What the norm does is read off its output rather than its class: some multiply by 1 + weight.

    Args:
        final_norm: its last norm as a function of activations; None where it has none.
    """
    head = plain.get_output_embeddings().weight
    width = head.shape[1]
    if final_norm is None:
        return Lens(torch.ones(width), False, head.float().cpu())
    signs = torch.ones(width)
    signs[1::2] = -1
    # Of a size at which the norm's epsilon does not show.
    probe = 64 * signs

    def normed(x: Tensor) -> Tensor:
        return final_norm(x.to(head)[None, None])[0, 0].float().cpu()

    bias = normed(torch.zeros(width))
    plain_out, shifted = normed(probe), normed(probe + 64)
    centres = bool((shifted - plain_out).norm() <= CENTRING_TOLERANCE * plain_out.norm())
    if centres:
        probe = probe - probe.mean()
    gain = (plain_out - bias) / (probe / probe.square().mean().sqrt())
    return Lens(gain, centres, head.float().cpu())
