"""Which latent points along which true feature: everything that is read off the cosines alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .assignment import best_assignment

MOST_ASSIGNED_ENTRIES = 1 << 26
"""Features × latents up to which the one-to-one assignment is computed (512 MB of cosines)."""
CHUNK_ENTRIES = 1 << 23
HOST_COSINE = 0.5
"""Cosine from which a latent is about another feature, its host, and may have absorbed this one."""
ABSORBED_COMPONENT = 0.3
"""Component along this feature, beside the host's, from which the latent may have absorbed it."""


@dataclass(frozen=True, eq=False)
class Matching:
    """True features against the latents of one dictionary, by signed cosine in float64.

    Cosines are between the true features and the decoder's rows brought to norm one; a row that is
    zero has cosine 0 with everything.
    """

    best_latent: Int[Tensor, " n_features"]
    """The latent of largest cosine with each feature."""
    cosine: Float[Tensor, " n_features"]
    """That cosine."""
    best_feature: Int[Tensor, " d_sae"]
    """The feature of largest cosine with each latent."""
    latent_cosine: Float[Tensor, " d_sae"]
    """That cosine."""
    assigned_latent: Int[Tensor, " n_features"] | None
    """A latent of its own for each feature, so that the sum of cosines is the largest possible; -1
    for a feature left without. None where there are too many cosines to assign."""
    assigned_cosine: Float[Tensor, " n_features"] | None
    """The cosine with that latent; -1 for a feature left without."""
    own: Int[Tensor, "pairs 2"]
    """(feature, latent) with a cosine of at least the threshold."""
    absorbers: Int[Tensor, "triples 3"]
    """(feature, latent, host): a latent below the threshold for the feature that points along
    another, its host, and has a clear component along the feature beside it."""


def unit_rows(matrix: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
    """Rows brought to norm one, float64; zero rows stay zero."""
    matrix = matrix.double()
    norm = matrix.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, matrix / norm.clamp(min=1e-300), 0.0)


def match(
    features: Float[Tensor, "n_features d_in"],
    decoder: Float[Tensor, "d_sae d_in"],
    threshold: float,
) -> Matching:
    """Match a dictionary's decoder rows with the true features.

    Args:
        features: V.
        decoder: W_dec; its rows may have any norm.
        threshold: cosine from which a latent matches a feature.
    """
    v, w = unit_rows(features), unit_rows(decoder)
    best, nearest = [], _NearestFeatures(len(w), v.device)
    for start, cosine in _cosine_chunks(v, w):
        best.append(cosine.max(dim=1))
        nearest.add(start, cosine)
    cosine = torch.cat([found.values for found in best])
    pairs, triples = [], []
    for start, part in _cosine_chunks(v, w):
        pairs.append(_own_pairs(start, part, threshold))
        recovered = cosine[start : start + len(part)] >= threshold
        triples.append(_absorbing(start, part, recovered, v, nearest, threshold))
    assigned_latent, assigned_cosine = _assign(v, w)
    return Matching(
        best_latent=torch.cat([found.indices for found in best]),
        cosine=cosine,
        best_feature=nearest.feature[0],
        latent_cosine=nearest.cosine[0],
        assigned_latent=assigned_latent,
        assigned_cosine=assigned_cosine,
        own=torch.cat(pairs),
        absorbers=torch.cat(triples),
    )


def _cosine_chunks(
    v: Float[Tensor, "n_features d_in"], w: Float[Tensor, "d_sae d_in"]
) -> Iterator[tuple[int, Float[Tensor, "some_features d_sae"]]]:
    step = max(1, CHUNK_ENTRIES // len(w))
    for start in range(0, len(v), step):
        yield start, v[start : start + step] @ w.T


class _NearestFeatures:
    """The two nearest features of every latent, over chunks of features."""

    def __init__(self, d_sae: int, device: torch.device):
        self.cosine = torch.full((2, d_sae), -torch.inf, dtype=torch.float64, device=device)
        self.feature = torch.zeros(2, d_sae, dtype=torch.int64, device=device)

    def add(self, start: int, cosine: Float[Tensor, "some_features d_sae"]) -> None:
        top = cosine.topk(min(2, len(cosine)), dim=0)
        values = torch.cat([self.cosine, top.values])
        features = torch.cat([self.feature, top.indices + start])
        self.cosine, places = values.topk(2, dim=0)
        self.feature = features.gather(0, places)


def _own_pairs(
    start: int, cosine: Float[Tensor, "some_features d_sae"], threshold: float
) -> Int[Tensor, "pairs 2"]:
    pairs = (cosine >= threshold).nonzero()
    pairs[:, 0] += start
    return pairs


def _absorbing(
    start: int,
    cosine: Float[Tensor, "some_features d_sae"],
    recovered: Tensor,
    v: Float[Tensor, "n_features d_in"],
    nearest: _NearestFeatures,
    threshold: float,
) -> Int[Tensor, "triples 3"]:
    """Latents that may have absorbed some recovered features.

    The component is the weight a of the feature in the least-squares fit of the unit decoder row by
    feature and host, w ≈ a v_feature + b v_host: features that merely lie near one another give a
    large cosine with both, but no component.
    """
    feature = torch.arange(start, start + len(cosine), device=v.device)[:, None]
    first = nearest.feature[0] != feature
    host = torch.where(first, nearest.feature[0], nearest.feature[1])
    host_cosine = torch.where(first, nearest.cosine[0], nearest.cosine[1])
    overlap = (v[start : start + len(cosine)] @ v.T).gather(1, host)
    determinant = (1 - overlap.square()).clamp(min=1e-9)
    component = (cosine - overlap * host_cosine) / determinant
    absorbs = (cosine < threshold) & (host_cosine >= HOST_COSINE)
    absorbs &= (component >= ABSORBED_COMPONENT) & recovered[:, None]
    place, latent = absorbs.nonzero(as_tuple=True)
    return torch.stack([place + start, latent, host[place, latent]], dim=1)


def _assign(
    v: Float[Tensor, "n_features d_in"], w: Float[Tensor, "d_sae d_in"]
) -> tuple[Tensor | None, Tensor | None]:
    if len(v) * len(w) > MOST_ASSIGNED_ENTRIES:
        return None, None
    cosine = v @ w.T
    latent = torch.from_numpy(best_assignment(cosine.cpu().numpy())).to(v.device)
    found = cosine.gather(1, latent.clamp(min=0)[:, None])[:, 0]
    return latent, torch.where(latent >= 0, found, -1.0)
