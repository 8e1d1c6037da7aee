"""Sparse codes and the few kernels everything on them is made of.

The training step is one dense product, the encoder's; all else touches only the active
(row, latent) pairs. `codes` holds the container, `kernels` the products over pairs, `selection` the
encoder product with its exact top-k, `autoencode` their composition with hand-written gradients.
"""

from .autoencode import autoencode
from .codes import SparseCodes
from .selection import gather_selection, pre_activation_chunks, select_top_k, top_k

__all__ = [
    "SparseCodes",
    "autoencode",
    "gather_selection",
    "pre_activation_chunks",
    "select_top_k",
    "top_k",
]
