"""How near planted features lie to one another, and to directions that know nothing of them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

CHANCE_SEED = 0
_CHUNK_ENTRIES = 1 << 24
"""Cosines held at a time (64 MB)."""


def coherence(features: Float[Tensor, "n_features d_in"]) -> float:
    """max |cos(v_i, v_j)| over all pairs of different features, which have norm one."""
    largest = 0.0
    step = max(1, _CHUNK_ENTRIES // len(features))
    for start in range(0, len(features), step):
        cosine = (features[start : start + step] @ features.T).abs()
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = 0
        largest = max(largest, float(cosine.max()))
    return largest


def chance_cosine(features: Float[Tensor, "n_features d_in"], n_latents: int) -> float:
    """Mean over features of the largest cosine with `n_latents` random directions.

    What a dictionary of this width reaches that has learnt nothing.
    """
    generator = np.random.default_rng(CHANCE_SEED)
    drawn = generator.standard_normal((n_latents, features.shape[1]), dtype=np.float32)
    directions = torch.from_numpy(drawn).to(features.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    step = max(1, _CHUNK_ENTRIES // n_latents)
    best = [(part @ directions.T).amax(dim=1) for part in features.split(step)]
    return float(torch.cat(best).double().mean())
