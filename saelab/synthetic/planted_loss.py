"""A loss with a known answer for planted rows, so that methods that learn from gradients can.

A linear readout names the strongest feature of a row: logits τ · x Vᵀ, loss the cross-entropy
(nats) of the feature with the largest coefficient. Its gradient with respect to the row is
τ (softmax − one-hot) V, which points from the features confused with it to the one meant. A row
without any feature has no label and a zero gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sparse import SparseCodes

SHARPNESS = 10.0
"""τ: at cosine one of a unit row, e^10 to one against a feature at a right angle."""
DESCRIPTION = (
    f"cross-entropy in nats of the row's strongest feature under the logits {SHARPNESS:g} · x Vᵀ"
)


def strongest_feature(coefficients: SparseCodes) -> Int[Tensor, " rows"]:
    """The feature with the largest coefficient in each row; −1 where none is active."""
    counts = coefficients.row_pointer.diff()
    longest = int(counts.max()) if counts.numel() else 0
    if not longest:
        return torch.full_like(counts, -1)
    # Rows padded to the longest, so that one argmax serves all.
    place = torch.arange(longest)
    inside = place < counts[:, None]
    pair = (coefficients.row_pointer[:-1, None] + place).clamp_max(coefficients.latent.shape[0] - 1)
    value = torch.where(inside, coefficients.value[pair].double(), -1.0)
    best = coefficients.latent[pair.gather(1, value.argmax(1, keepdim=True))].squeeze(1)
    return torch.where(counts > 0, best, -1)


def planted_gradients(
    rows: Float[Tensor, "rows d_in"],
    features: Float[Tensor, "n_features d_in"],
    coefficients: SparseCodes,
) -> Float[Tensor, "rows d_in"]:
    """Gradient of the planted loss with respect to each row."""
    label = strongest_feature(coefficients)
    slope = (SHARPNESS * rows @ features.T).softmax(1)
    named = label >= 0
    slope[named.nonzero().squeeze(1), label[named]] -= 1
    slope[~named] = 0
    return SHARPNESS * slope @ features
