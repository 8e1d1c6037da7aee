"""Cross-layer transcoders as one dictionary: block matrices over all layers, side by side.

Latents of layer i read the i-th hook point alone and write the i-th and all later ones. As a
dictionary over L hook points the encoder is block diagonal and the decoder block triangular, and
most of both is zeros: L² blocks are stored for L encoders and L (L + 1) / 2 decoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError

DENSE_LIMIT = 4_000_000_000
"""Bytes of float32 that the block matrices may take."""


def require_dense_size(path: Path, n_layers: int, d_model: int, d_sae: int) -> None:
    """Refuse a cross-layer transcoder whose block matrices would be too large.

    Args:
        path: where it is, for the message.
        n_layers: hook points it reads, and as many it writes.
        d_model: width of each.
        d_sae: latents of each layer.

    Raises:
        ArtifactError: they would.
    """
    size = 2 * 4 * n_layers**2 * d_model * d_sae
    if size > DENSE_LIMIT:
        raise ArtifactError(
            f"{path} has {n_layers} layers with {d_sae:,} latents each: as the dense matrices that "
            f"saelab works with, zeros between its blocks, it takes {size / 1e9:.0f} GB, more than "
            f"the {DENSE_LIMIT / 1e9:.0f} GB allowed; import a dictionary of a single layer instead"
        )


def block_matrices(
    encoders: Sequence[Float[Tensor, "d_model d_sae"]],
    decoders: Mapping[tuple[int, int], Float[Tensor, "d_sae d_model"]],
) -> dict[str, Tensor]:
    """W_enc [L·d_model, L·d_sae] and W_dec [L·d_sae, L·d_model] of a cross-layer transcoder.

    Args:
        encoders: one for each layer.
        decoders: by source layer and target layer; none: zeros.
    """
    (d_model, d_sae), n_layers = encoders[0].shape, len(encoders)
    W_dec = torch.zeros(n_layers, d_sae, n_layers, d_model)
    for (layer, target), block in decoders.items():
        W_dec[layer, :, target] = block
    return {
        "W_enc": torch.block_diag(*encoders),
        "W_dec": W_dec.reshape(n_layers * d_sae, n_layers * d_model),
    }
