"""A model with random weights: the control for what comes of architecture and scale alone."""

from __future__ import annotations

import torch

from saelab.stats.seeds import seeded_generator

from .language_model import LanguageModel


@torch.no_grad()
def randomise_weights(model: LanguageModel, seed: int) -> None:
    """Put Gaussian entries of the same mean and deviation in place of each of a model's matrices.

    Embeddings included; norms' gains and biases stay (Heap et al., 2025, arXiv 2501.17727). The
    model is changed in place, so load one for this.
    """
    generator = seeded_generator("random weights", seed)
    for weights in model._forward.plain.parameters():
        if weights.dim() >= 2:
            drawn = torch.randn(weights.shape, generator=generator)
            spread, mean = weights.float().std(), weights.float().mean()
            weights.copy_((drawn.to(weights.device) * spread + mean).to(weights))
