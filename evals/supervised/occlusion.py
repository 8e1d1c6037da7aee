"""Occlusion and over-splitting: attributes that no latent shows, and ones cut into too many.

Occlusion: for how many values of an attribute there is a latent of its own. Over-splitting: latents
that are on almost only where one value holds, but on a small part of where it does. Source:
Makelov, Lange & Nanda, arXiv 2405.08366, sections 6.1, 6.2, A.14; the over-splitting numbers are
this project's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from .interpretation import ALWAYS_ON, Interpretations

PURITY = 0.95
"""Share of the prompts with the latent on at which the value must hold."""
PARTIAL_RECALL = 0.5
"""Share of the prompts with the value below which a latent shows only part of it."""


@dataclass(frozen=True, kw_only=True)
class AttributeUse:
    """What the latents of a dictionary make of one attribute."""

    n_values: int
    """Values that occur in the prompts."""
    n_found: dict[str, int]
    """Threshold -> values for which some latent has at least this F1 (always-on ones left out)."""
    n_splinters: int
    """Live latents on at least 95 % purely where one value holds, with a recall below 0.5."""
    missing_f1: float
    """1 − the highest F1 of any latent for any value of the attribute."""


def attribute_use(
    found: Interpretations,
    attribute: str,
    sizes: Int[Tensor, " values"],
    thresholds: tuple[float, ...],
) -> AttributeUse:
    """Measure one attribute from a dictionary's interpretations.

    Args:
        found: the interpretations.
        attribute: its name.
        sizes: prompts with each value.
        thresholds: F1 from which a value counts as found.
    """
    usable = (found.on_rate < ALWAYS_ON).unsqueeze(1)
    f1 = torch.where(usable, found.value_f1[attribute], 0.0)
    overlap = found.overlap[attribute].double()
    n_on = (found.on_rate * int(sizes.sum())).round().clamp_min(1).unsqueeze(1)
    pure = (overlap / n_on >= PURITY) & (overlap > 0)
    partial = overlap / sizes.clamp_min(1) < PARTIAL_RECALL
    best = f1.amax(0)
    return AttributeUse(
        n_values=int((sizes > 0).sum()),
        n_found={f"{limit:g}": int((best >= limit).sum()) for limit in thresholds},
        n_splinters=int((pure & partial).any(1).sum()),
        missing_f1=1 - float(f1.max()),
    )
