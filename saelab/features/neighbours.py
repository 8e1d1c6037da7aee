"""Nearest decoder rows and encoder columns by cosine, and the 2-D map of decoder directions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.stats.cosines import unit_rows


def principal_map(
    vectors: Float[Tensor, "n_vectors width"],
) -> tuple[Float[Tensor, "n_vectors 2"], list[float]]:
    """The two principal components of the unit vectors, in float64.

    Each axis points where its largest loading is positive, so that the map does not flip between
    machines.

    Returns:
        Coordinates, and the fraction of the variance that each axis explains.
    """
    unit = unit_rows(vectors.double())
    centred = unit - unit.mean(dim=0)
    values, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, -2:].flip(1)
    largest = axes.abs().argmax(dim=0)
    axes = axes * torch.sign(axes[largest, torch.arange(axes.shape[1])])
    coordinates = centred @ axes
    if axes.shape[1] < 2:
        coordinates = torch.cat([coordinates, torch.zeros_like(coordinates)], dim=1)
    total = float(values.clamp_min(0).sum())
    explained = [float(value) / total if total > 0 else 0.0 for value in values[-2:].flip(0)]
    return coordinates, explained
