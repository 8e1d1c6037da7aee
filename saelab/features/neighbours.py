"""Nearest decoder rows and encoder columns by cosine, and the 2-D map of decoder directions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

CHUNK_ENTRIES = 1 << 24
"""Cosines held at a time."""


@dataclass(frozen=True)
class NearestChunk:
    """Nearest vectors of some of the vectors."""

    start: int
    """Index of the first of them."""
    index: Integer[Tensor, "chunk n"]
    """The nearest, falling by cosine; never the vector itself."""
    cosine: Float[Tensor, "chunk n"]
    """Their cosines."""


def nearest(vectors: Float[Tensor, "n_vectors width"], n: int) -> Iterator[NearestChunk]:
    """The `n` vectors of highest cosine with each vector, itself left out; a chunk at a time.

    A vector of norm zero has cosine 0 with all. Cosines are computed in float32.
    """
    unit = unit_rows(vectors.float())
    n_vectors = unit.shape[0]
    n = min(n, n_vectors - 1)
    rows = max(1, CHUNK_ENTRIES // max(1, n_vectors))
    for start in range(0, n_vectors, rows):
        cosines = unit[start : start + rows] @ unit.T
        own = torch.arange(cosines.shape[0], device=unit.device)
        cosines[own, own + start] = -torch.inf
        found = cosines.topk(n, dim=1)
        yield NearestChunk(start, found.indices, found.values.clamp(-1.0, 1.0))


def unit_rows(vectors: Float[Tensor, "n_vectors width"]) -> Float[Tensor, "n_vectors width"]:
    """The vectors divided by their norms; those of norm zero stay zero."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, torch.ones_like(norms))


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
