"""How often each planted feature is active, computed from the law rather than counted."""

from __future__ import annotations

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from .config import ExactSupportConfig, PlantedConfig
from .streams import partner_map


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
    own = root_frequencies(config)
    partner = torch.from_numpy(partner_map(config))
    source = torch.empty_like(partner)
    source[partner] = torch.arange(len(partner))
    if isinstance(config.support, ExactSupportConfig):
        pairs = sum(active * (active - 1) for active in config.support.active)
        both = pairs / len(config.support.active) / (config.n_roots * (config.n_roots - 1))
        only_source = own[source] - both
    else:
        only_source = own[source] * (1 - own)
    roots = own + config.partner_probability * only_source
    parents = roots[: config.hierarchy.n_parents]
    per_parent = config.hierarchy.children_per_parent
    children = repeat(parents, "parent -> (parent child)", child=per_parent)
    return torch.cat([roots, config.hierarchy.child_probability * children])


def mean_active(config: PlantedConfig) -> float:
    """Mean number of active features in a row: the true L0."""
    return float(feature_frequencies(config).sum())
