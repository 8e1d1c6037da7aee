"""Which latent points along which true feature: everything that is read off the cosines alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.stats.assignment import best_assignment
from saelab.stats.cosines import cosine_blocks, most_similar, nearest, unit_rows

MOST_ASSIGNED_ENTRIES = 1 << 26
"""Features × latents up to which the one-to-one assignment is computed (512 MB of cosines)."""
HOST_COSINE = 0.5
"""Cosine from which a latent is about another feature, its host, and may have absorbed this one."""
ABSORBED_COMPONENT = 0.3
"""Component along this feature, next to the host's, from which the latent may have absorbed it."""


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
    pairs: Int[Tensor, "pairs 2"]
    """(feature, latent) with a cosine of at least the threshold."""
    absorbers: Int[Tensor, "triples 3"]
    """(feature, latent, host): a latent below the threshold for the feature that points along
    another, its host, and has a clear component along the feature beside it."""


def match(
    features: Float[Tensor, "n_features d_in"],
    decoder: Float[Tensor, "d_sae d_in"],
    threshold: float,
) -> Matching:
    """Match a dictionary's decoder rows with the true features.

    Args:
        decoder: W_dec; its rows may have any norm.
        threshold: cosine from which a latent matches a feature.
    """
    v, w = unit_rows(features.double()), unit_rows(decoder.double())
    cosine, best_latent, _, _ = nearest(v, w)
    # The two nearest features of every latent; of one feature, a second of cosine −∞.
    host_cosine = w.new_full((len(w), 2), -torch.inf)
    host = torch.zeros_like(host_cosine, dtype=torch.int64)
    for part, values, index in most_similar(w, v, 2):
        host_cosine[part, : values.shape[1]], host[part, : values.shape[1]] = values, index
    pairs, triples = [], []
    for part, block in cosine_blocks(v, w):
        above = (block >= threshold).nonzero()
        above[:, 0] += part.start
        pairs.append(above)
        recovered = cosine[part] >= threshold
        triples.append(_absorbing(part.start, block, recovered, v, host, host_cosine, threshold))
    assigned_latent, assigned_cosine = _assign(v, w)
    return Matching(
        best_latent=best_latent,
        cosine=cosine,
        best_feature=host[:, 0],
        latent_cosine=host_cosine[:, 0],
        assigned_latent=assigned_latent,
        assigned_cosine=assigned_cosine,
        pairs=torch.cat(pairs),
        absorbers=torch.cat(triples),
    )


def _absorbing(
    start: int,
    cosine: Float[Tensor, "some_features d_sae"],
    recovered: Tensor,
    v: Float[Tensor, "n_features d_in"],
    host: Int[Tensor, "d_sae 2"],
    host_cosine: Float[Tensor, "d_sae 2"],
    threshold: float,
) -> Int[Tensor, "triples 3"]:
    """Latents that may have absorbed some recovered features.

    The component is the weight a of the feature in the least-squares fit of the unit decoder row by
    feature and host, w ≈ a v_feature + b v_host: features that are merely close to one another give
    a large cosine with both, but no component.
    """
    feature = torch.arange(start, start + len(cosine), device=v.device)[:, None]
    # A latent whose nearest feature is the feature itself has the second one as its host.
    first = host[:, 0] != feature
    host = torch.where(first, host[:, 0], host[:, 1])
    host_cosine = torch.where(first, host_cosine[:, 0], host_cosine[:, 1])
    overlap = (v[start : start + len(cosine)] @ v.T).gather(1, host)
    determinant = (1 - overlap.square()).clamp(min=1e-9)
    component = (cosine - overlap * host_cosine) / determinant
    absorbs = (cosine < threshold) & (host_cosine >= HOST_COSINE)
    absorbs &= (component >= ABSORBED_COMPONENT) & recovered[:, None]
    row, latent = absorbs.nonzero(as_tuple=True)
    return torch.stack([row + start, latent, host[row, latent]], dim=1)


def _assign(
    v: Float[Tensor, "n_features d_in"], w: Float[Tensor, "d_sae d_in"]
) -> tuple[Tensor | None, Tensor | None]:
    if len(v) * len(w) > MOST_ASSIGNED_ENTRIES:
        return None, None
    cosine = v @ w.T
    latent = torch.from_numpy(best_assignment(cosine.cpu().numpy())).to(v.device)
    assigned = cosine.gather(1, latent.clamp(min=0)[:, None])[:, 0]
    return latent, torch.where(latent >= 0, assigned, -1.0)
