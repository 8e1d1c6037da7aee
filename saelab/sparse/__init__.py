"""Sparse codes and the few kernels everything on them is made of.

The training step is one dense product, the encoder's; all else touches only the active
(row, latent) pairs. `codes` holds the container, `kernels` the products over pairs, `selection` the
encoder product with its exact top-k, `above` selection by threshold, per batch and per latent,
`autoencode` encoding and decoding on pairs with hand-written gradients, `cross_layer` the same for
latents that read one layer each and write all later ones.
"""

from .above import select_above, select_batch_top, select_latent_top
from .autoencode import autoencode, decode_selected, encode_selected
from .codes import SparseCodes
from .cross_layer import (
    LayerPairs,
    LayerPreActivations,
    decode_layers,
    decoder_pointer,
    encode_layers,
    select_top_k_of_each_layer,
)
from .kernels import TransposedPairs
from .selection import PreActivations, select_boosted_top_k, select_top_k, top_k

__all__ = [
    "LayerPairs",
    "LayerPreActivations",
    "PreActivations",
    "SparseCodes",
    "TransposedPairs",
    "autoencode",
    "decode_layers",
    "decode_selected",
    "decoder_pointer",
    "encode_layers",
    "encode_selected",
    "select_above",
    "select_batch_top",
    "select_boosted_top_k",
    "select_latent_top",
    "select_top_k",
    "select_top_k_of_each_layer",
    "top_k",
]
