"""Cosines between the rows of two matrices, in blocks: the whole matrix never exists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from .seeds import seeded_generator

BLOCK_ENTRIES = 1 << 24
"""Cosines held at a time (64 MB in float32)."""
BLOCK_ROWS = 4096
"""Rows held in float64 at a time."""
FEW_POINTS = 1_000
MAP_KEEPS = 10
"""Nearest neighbours of which a map says how many it kept."""


def unit_rows(vectors: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """The rows divided by their norms, in their dtype; a zero row stays zero.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(norm > 0, norm, 1.0)


@dataclass(frozen=True, eq=False)
class Directions:
    """The latents of a dictionary that take part in a comparison."""

    rows: Float[Tensor, "alive d_in"]
    """Their decoder rows divided by their norms, float32; a zero row stays zero."""
    latent: Int[Tensor, " alive"]
    """Which latents they are."""


def directions_of(
    W_dec: Float[Tensor, "d_sae d_in"], alive: Bool[Tensor, " d_sae"] | None = None
) -> Directions:
    """The unit decoder rows of the alive latents; of all where `alive` is None."""
    latent = torch.arange(W_dec.shape[0], device=W_dec.device)
    if alive is not None:
        latent = latent[alive.to(W_dec.device)]
    rows = W_dec.new_empty(len(latent), W_dec.shape[1], dtype=torch.float32)
    for part, some in zip(rows.split(BLOCK_ROWS), latent.split(BLOCK_ROWS), strict=True):
        part.copy_(unit_rows(W_dec[some].double()))
    return Directions(rows, latent)


def random_directions(count: int, d_in: int, seed: int) -> Float[Tensor, "count d_in"]:
    """Unit vectors of uniformly random direction, float32; the same for the same arguments.

    The generator's seed is a hash: seeded with the number itself it would often draw the very
    directions that a training with the same seed started from.
    """
    generator = seeded_generator("random directions", seed)
    drawn = torch.randn(count, d_in, generator=generator, dtype=torch.float64)
    return (drawn / drawn.norm(dim=1, keepdim=True)).float()


def cosine_blocks(
    rows: Float[Tensor, "n d_in"], columns: Float[Tensor, "m d_in"]
) -> Iterator[tuple[slice, Float[Tensor, "block m"]]]:
    """The cosines of all `rows` with all `columns` (both unit rows), a few rows at a time."""
    step = max(1, BLOCK_ENTRIES // max(1, columns.shape[0]))
    for start in range(0, rows.shape[0], step):
        part = slice(start, min(start + step, rows.shape[0]))
        yield part, rows[part] @ columns.T


def nearest(
    rows: Float[Tensor, "n d_in"], columns: Float[Tensor, "m d_in"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " m"], Int[Tensor, " m"]]:
    """The largest signed cosine of every row with the other side, and whose it is.

    Returns:
        Of each of `rows`: cosine, index in `columns`; of each of `columns`: cosine, index in
        `rows`. The first of equal cosines is taken.
    """
    cosine, index = rows.new_empty(rows.shape[0]), rows.new_empty(rows.shape[0], dtype=torch.int64)
    back = columns.new_full((columns.shape[0],), -torch.inf)
    back_index = columns.new_zeros(columns.shape[0], dtype=torch.int64)
    for part, block in cosine_blocks(rows, columns):
        cosine[part], index[part] = block.max(dim=1)
        largest, row = block.max(dim=0)
        better = largest > back
        back[better], back_index[better] = largest[better], row[better] + part.start
    return cosine, index, back, back_index


def paired_products(
    rows: Float[Tensor, "n d_in"],
    columns: Float[Tensor, "m d_in"],
    row: Int[Tensor, " pairs"],
    column: Int[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    """The inner products of some rows with a column each, in float64, a few at a time."""
    parts = zip(row.split(BLOCK_ROWS), column.split(BLOCK_ROWS), strict=True)
    return torch.cat([(rows[i].double() * columns[j].double()).sum(dim=1) for i, j in parts])


def most_similar(
    rows: Float[Tensor, "n d_in"], columns: Float[Tensor, "m d_in"] | None, k: int
) -> Iterator[tuple[slice, Float[Tensor, "block k"], Int[Tensor, "block k"]]]:
    """The `k` columns of largest cosine with each row, falling, a block of rows at a time.

    Args:
        rows: unit rows.
        columns: unit rows; None: the rows themselves, each of which leaves itself out.
        k: how many; at most as many as there are.

    Yields:
        Which rows, their largest cosines, and the indices of the columns.
    """
    others = rows if columns is None else columns
    k = min(k, len(others) - (columns is None))
    for part, block in cosine_blocks(rows, others):
        if columns is None:
            block[:, part].fill_diagonal_(-torch.inf)
        top = block.topk(k, dim=1)
        yield part, top.values, top.indices


def neighbour_map(
    vectors: Float[Tensor, "n_vectors width"],
    cosine: Float[np.ndarray, "n_vectors k"],
    neighbour: Int[np.ndarray, "n_vectors k"],
) -> tuple[Float[np.ndarray, "n_vectors 2"], str, float]:
    """Two dimensions in which what is near in cosine stays near: t-SNE of the nearest neighbours.

    It starts from the two principal components and is the same each time. A handful of vectors, or
    vectors that are all alike, keep the components.

    Args:
        vectors: of any norms.
        cosine: of each with its nearest others, falling.
        neighbour: which ones they are.

    Returns:
        Coordinates, the method in words, and which share of the ten (or `k`) nearest by cosine are
        among as many nearest on the map.
    """
    start, k = principal_map(vectors).numpy(), cosine.shape[1]
    near = min(k, MAP_KEEPS)
    if k < MAP_KEEPS or not start[:, 0].std() > 0:
        return start, "two principal components of", _share_kept(start, neighbour[:, :near])
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.initialization import rescale
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    known = PrecomputedNeighbors(neighbour, 1.0 - cosine.astype(np.float64))
    affinities = PerplexityBasedNN(knn_index=known, perplexity=k / 3, n_jobs=1)
    # Interpolation on a grid costs the same seconds for a handful of points as for thousands.
    gradient = "bh" if len(start) < FEW_POINTS else "fft"
    placed = TSNEEmbedding(
        rescale(start), affinities, negative_gradient_method=gradient, n_jobs=1, random_state=0
    )
    # Clusters form while neighbours pull harder than they should, then find their shape.
    placed.optimize(250, exaggeration=12, momentum=0.5, inplace=True)
    placed.optimize(250, momentum=0.8, inplace=True)
    coordinates = np.asarray(placed)
    method = f"t-SNE of the {k} nearest by cosine of"
    return coordinates, method, _share_kept(coordinates, neighbour[:, :near])


def _share_kept(
    coordinates: Float[np.ndarray, "n_vectors 2"], neighbour: Int[np.ndarray, "n_vectors near"]
) -> float:
    """Which share of the neighbours are among as many nearest on the map."""
    near = neighbour.shape[1]
    if not near:
        return math.nan
    nearest = np.asarray(KDTree(coordinates).query(coordinates, near + 1)[1])
    itself = nearest == np.arange(len(nearest))[:, None]
    # Of points on one spot, the point itself may not be among those found.
    itself[~itself.any(axis=1), -1] = True
    nearest = nearest[~itself].reshape(-1, near, 1)
    return float((nearest == neighbour[:, None, :]).any(axis=1).mean())


def principal_map(vectors: Float[Tensor, "n_vectors width"]) -> Float[Tensor, "n_vectors 2"]:
    """The two principal components of the unit vectors, in float64.

    Each axis points where its largest loading is positive, so that the map does not flip between
    machines.
    """
    mean = _sum_of(unit.sum(dim=0) for unit in _unit_blocks(vectors)) / len(vectors)
    centred = (unit - mean for unit in _unit_blocks(vectors))
    axes = torch.linalg.eigh(_sum_of(block.T @ block for block in centred))[1]
    axes = axes[:, -2:].flip(1)
    largest = axes.abs().argmax(dim=0)
    axes = axes * torch.sign(axes[largest, torch.arange(axes.shape[1])])
    coordinates = torch.cat([(unit - mean) @ axes for unit in _unit_blocks(vectors)])
    if axes.shape[1] < 2:
        coordinates = torch.cat([coordinates, torch.zeros_like(coordinates)], dim=1)
    return coordinates.cpu()


def row_norms(vectors: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
    """The norm of each row, in float64, in which no more than a few rows are held at a time."""
    parts = vectors.split(BLOCK_ROWS)
    return torch.cat([torch.linalg.vector_norm(part.double(), dim=1) for part in parts])


def _unit_blocks(vectors: Tensor) -> Iterator[Tensor]:
    """A few unit rows at a time, in float64: all of them can be twice the size of a dictionary."""
    return (unit_rows(part.double()) for part in vectors.split(BLOCK_ROWS))


def _sum_of(parts: Iterator[Tensor]) -> Tensor:
    return reduce(torch.add, parts)
