"""Random unit directions: the floor that latents are held against."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.formats.files import hash_of


def random_directions(count: int, d_in: int, seed: int) -> Float[Tensor, "count d_in"]:
    """Unit vectors of uniformly random direction, float32; the same for the same arguments.

    The generator's seed is a hash: seeded with the number itself it would often draw the very
    directions that a training with the same seed started from.
    """
    generator = torch.Generator().manual_seed(int(hash_of(["random directions", seed])[:15], 16))
    drawn = torch.randn(count, d_in, generator=generator, dtype=torch.float64)
    return (drawn / drawn.norm(dim=1, keepdim=True)).float()
