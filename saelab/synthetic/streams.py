"""Random numbers of a planted dictionary, and how often the laws make each feature active.

Each use of random numbers has its own generator, named by what it is for. Rows come in blocks of
fixed size with a generator each, so any range of rows can be made alone and is the same whatever it
is made together with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from .config import ExactSupportConfig, PlantedConfig

BLOCK_ROWS = 256
"""Rows made together; part of what the rows are, so that changing it makes other rows."""


def generator_for(config: PlantedConfig, purpose: str, block: int = 0) -> np.random.Generator:
    """The generator of one block of one stream of random numbers."""
    label = int.from_bytes(purpose.encode(), "little")
    return np.random.default_rng(np.random.SeedSequence([config.seed, label, block]))


def partner_map(config: PlantedConfig) -> npt.NDArray[np.int64]:
    """The partner of each root: one cycle through all, so that none is its own partner."""
    order = generator_for(config, "partners").permutation(config.n_roots).astype(np.int64)
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -1)
    return partner


def draw_support(
    config: PlantedConfig,
    generator: np.random.Generator,
    frequencies: npt.NDArray[np.float64],
    partner: npt.NDArray[np.int64],
    first_row: int,
) -> npt.NDArray[np.bool_]:
    """Which features are active in a block of rows, [BLOCK_ROWS, n_features].

    Args:
        generator: of the block; advanced.
        frequencies: of the roots, by the support law alone.
        first_row: index of the block's first row in its stream.
    """
    active = np.zeros((BLOCK_ROWS, config.n_features), dtype=bool)
    roots = active[:, : config.n_roots]
    if isinstance(config.support, ExactSupportConfig):
        takes_turns = np.array(config.support.active)
        rows = np.arange(first_row, first_row + BLOCK_ROWS)
        _choose(roots, generator, takes_turns[rows % len(takes_turns)])
    else:
        roots |= generator.random(roots.shape, dtype=np.float32) < frequencies
    if config.partner_probability:
        row, feature = roots.nonzero()
        switched = generator.random(len(row)) < config.partner_probability
        roots[row[switched], partner[feature[switched]]] = True
    if config.n_children:
        hierarchy = config.hierarchy
        parents = roots[:, : hierarchy.n_parents].repeat(hierarchy.children_per_parent, axis=1)
        drawn = generator.random(parents.shape) < hierarchy.child_probability
        active[:, config.n_roots :] = parents & drawn
    return active


def _choose(
    active: npt.NDArray[np.bool_], generator: np.random.Generator, counts: npt.NDArray[np.int64]
) -> None:
    """Set `counts[r]` entries of each row r, every set equally likely (Floyd's algorithm)."""
    n_roots, most = active.shape[1], int(counts.max())
    for step in range(most):
        # Row r joins for its last counts[r] steps: step `most - counts[r]` is its first.
        joins = np.flatnonzero(most - counts <= step)
        last = n_roots - most + step
        drawn = generator.integers(0, last + 1, size=len(joins))
        taken = active[joins, drawn]
        active[joins, np.where(taken, last, drawn)] = True


def root_frequencies(config: PlantedConfig) -> Float[Tensor, " n_roots"]:
    """Probability that the support law makes each root active, float64; partners not counted."""
    support = config.support
    if isinstance(support, ExactSupportConfig):
        share = sum(support.active) / len(support.active) / config.n_roots
        return torch.full((config.n_roots,), share, dtype=torch.float64)
    # numpy's, which hits both ends exactly.
    return torch.from_numpy(np.geomspace(support.highest, support.lowest, config.n_roots))


def feature_frequencies(config: PlantedConfig) -> Float[Tensor, " n_features"]:
    """Probability that each feature is active in a row, float64: f_i.

    A root is active by the support law or because the feature whose partner it is switched it on,
    a child with `child_probability` where its parent is.
    """
    drawn = root_frequencies(config)
    partner = torch.from_numpy(partner_map(config))
    source = torch.empty_like(partner)
    source[partner] = torch.arange(len(partner))
    if isinstance(config.support, ExactSupportConfig):
        pairs = sum(active * (active - 1) for active in config.support.active)
        both = pairs / len(config.support.active) / (config.n_roots * (config.n_roots - 1))
        only_source = drawn[source] - both
    else:
        only_source = drawn[source] * (1 - drawn)
    roots = drawn + config.partner_probability * only_source
    parents = roots[: config.hierarchy.n_parents]
    per_parent = config.hierarchy.children_per_parent
    children = repeat(parents, "parent -> (parent child)", child=per_parent)
    return torch.cat([roots, config.hierarchy.child_probability * children])
