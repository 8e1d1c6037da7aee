"""How near planted features lie to one another, and to directions that know nothing of them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.stats.cosines import cosine_blocks, nearest

CHANCE_SEED = 0


def coherence(features: Float[Tensor, "n_features d_in"]) -> float:
    """max |cos(v_i, v_j)| over all pairs of different features, which have norm one."""
    largest = 0.0
    for part, block in cosine_blocks(features, features):
        block[:, part].fill_diagonal_(0)
        largest = max(largest, float(block.abs().max()))
    return largest


def chance_cosine(features: Float[Tensor, "n_features d_in"], n_latents: int) -> float:
    """Mean over features of the largest cosine with `n_latents` random directions.

    What a dictionary of this width reaches that has learnt nothing.
    """
    generator = np.random.default_rng(CHANCE_SEED)
    drawn = generator.standard_normal((n_latents, features.shape[1]), dtype=np.float32)
    directions = torch.from_numpy(drawn).to(features.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return float(nearest(features, directions)[0].double().mean())
