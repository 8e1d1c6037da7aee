"""Cross-layer transcoders: a dictionary for each layer, which writes its hook point and later ones.

As one dictionary over L hook points the encoder is block diagonal and the decoder block triangular,
and most of both is zeros: L² blocks are stored for L encoders and L (L + 1) / 2 decoders. Where
they would be too large, the layers stay apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.layered import LayeredDictionary
from saelab.errors import ArtifactError

from .foreign import build_unshifted

DENSE_LIMIT = 4_000_000_000
"""Bytes of float32 that matrices with zeros between their blocks may take."""


def dense_size(n_layers: int, d_model: int, d_sae: int) -> int:
    """Bytes of float32 of an encoder and a decoder over several layers, zeros between blocks.

    Args:
        n_layers: hook points that are read, and as many that are written.
        d_model: width of each.
        d_sae: latents of each layer.
    """
    return 2 * 4 * n_layers**2 * d_model * d_sae


def across_layers(
    path: Path, shape: tuple[int, int, int], layer: Callable[[int], Dictionary]
) -> Dictionary:
    """The dictionary over all layers: one where it fits into memory, else a sum of them.

    Args:
        path: where it is, for messages.
        shape: layers, width of each hook point, latents of each layer.
        layer: the dictionary of a layer. It writes its own hook point and all later ones; the bias
            of what is written is the first one's, the others' is zero.
    """
    n_layers, d_model, d_sae = shape
    if dense_size(*shape) > DENSE_LIMIT:
        return LayeredDictionary(layer, [d_sae] * n_layers)
    layers = [layer(index) for index in range(n_layers)]
    d = n_layers * d_model
    W_dec, W_skip = torch.zeros(n_layers * d_sae, d), torch.zeros(d, d)
    for index, each in enumerate(layers):
        start = index * d_model
        W_dec[index * d_sae : (index + 1) * d_sae, start:] = each.W_dec
        if each.W_skip is not None:
            W_skip[start:, start : start + d_model] = each.W_skip
    first = layers[0]
    tensors: dict[str, Any] = {
        name: torch.cat([each.tensors()[name] for each in layers])
        for name in ("b_enc", "threshold")
        if name in first.tensors()
    }
    return build_unshifted(
        path,
        first.architecture,
        W_enc=torch.block_diag(*(each.W_enc for each in layers)),
        W_dec=W_dec,
        b_dec=first.b_dec,
        k=first.k or None,
        **tensors | ({} if first.W_skip is None else {"W_skip": W_skip}),
    )


def layer_tensors(
    index: int,
    decoder: Float[Tensor, "d_sae targets d_model"],
    b_dec: Float[Tensor, "layers d_model"],
    skip: Float[Tensor, "d_model d_model"] | None = None,
) -> dict[str, Tensor]:
    """W_dec, b_dec and W_skip of one layer, as `across_layers` has them.

    Args:
        index: of the layer.
        decoder: by target, its own hook point first.
        b_dec: of all layers.
        skip: from what it reads to its own hook point, multiplied from the left; None: there is
            none.
    """
    written = b_dec if index == 0 else torch.zeros_like(b_dec[index:])
    tensors = {"W_dec": decoder.flatten(1), "b_dec": written.flatten()}
    if skip is not None:
        tensors["W_skip"] = skip.new_zeros(decoder[0].numel(), len(skip))
        tensors["W_skip"][: len(skip)] = skip
    return tensors


def one_latent_for_each(
    path: Path, tensors: dict[str, Tensor], decoder: Float[Tensor, "targets d_sae d_model"]
) -> dict[str, Tensor]:
    """W_enc, b_enc and W_dec of a crosscoder with a choice of latents for each hook point written.

    A latent becomes one for each of them: all read the same, and each writes its own.

    Raises:
        ArtifactError: that would be too large.
    """
    n_targets, d_sae, d_model = decoder.shape
    size = dense_size(n_targets, d_model, d_sae)
    if size > DENSE_LIMIT:
        raise ArtifactError(
            f"{path} chooses among {d_sae:,} latents for each of {n_targets} hook points: as one "
            f"dictionary, zeros between its blocks, it takes {size / 1e9:.0f} GB, more than the "
            f"{DENSE_LIMIT / 1e9:.0f} GB allowed; import an autoencoder of one hook point instead"
        )
    blocks = torch.zeros(n_targets, d_sae, n_targets, d_model)
    for target in range(n_targets):
        blocks[target, :, target] = decoder[target]
    return {
        "W_enc": tensors["W_enc"].repeat(1, n_targets),
        "b_enc": tensors["b_enc"].repeat(n_targets),
        "W_dec": blocks.reshape(n_targets * d_sae, n_targets * d_model),
    }
