"""The dictionary in float64, written down plainly: what a saved self-test is computed with.

In double precision two machines agree on which latents are active unless two pre-activations tie to
fifteen digits, so a stored answer can be compared tightly anywhere.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sparse import SparseCodes

from .architectures import ARCHITECTURES, Dictionary
from .layered import LayeredDictionary

LATENTS_AT_A_TIME = 8192
"""Bounds the float64 copy of the weights, whatever the width of the dictionary."""


@torch.no_grad()
def reference_codes(
    dictionary: Dictionary, x: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch d_sae"]:
    """Dense float64 codes."""
    if isinstance(dictionary, LayeredDictionary):
        parts = [
            reference_codes(dictionary.layer(index), dictionary.read_by(index, x))
            for index in range(dictionary.n_layers)
        ]
        codes = SparseCodes.from_dense(torch.cat(parts, dim=1))
        return (codes.largest(dictionary.k) if dictionary.k else codes).to_dense()
    inputs = dictionary.encoder_inputs(x.double())
    columns = [
        inputs @ dictionary.W_enc[:, start : start + LATENTS_AT_A_TIME].double()
        for start in range(0, dictionary.d_sae, LATENTS_AT_A_TIME)
    ]
    pre_activations = torch.cat(columns, dim=1)
    if dictionary.architecture != "gated":
        pre_activations += dictionary.b_enc.double()
    codes, active = ARCHITECTURES[dictionary.architecture].gate(dictionary, pre_activations)
    return torch.where(active, codes, 0.0)


@torch.no_grad()
def reference_reconstruction(
    dictionary: Dictionary,
    codes: Float[Tensor, "batch d_sae"],
    x: Float[Tensor, "batch d_in"],
) -> Float[Tensor, "batch d_out"]:
    """The float64 reconstruction from the dense float64 codes of `x`."""
    if isinstance(dictionary, LayeredDictionary):
        parts = codes.tensor_split(dictionary.starts[1:-1], dim=1)
        return dictionary.added(
            lambda index, layer: reference_reconstruction(
                layer, parts[index], dictionary.read_by(index, x)
            )
        )
    sparse = SparseCodes.from_dense(codes)
    rows = [
        sparse.value[start:stop] @ dictionary.W_dec[sparse.latent[start:stop]].double()
        for start, stop in zip(
            sparse.row_pointer[:-1].tolist(), sparse.row_pointer[1:].tolist(), strict=True
        )
    ]
    decoded, scale = torch.stack(rows), dictionary.row_scale(x.double())
    decoded = decoded if scale is None else decoded * scale.unsqueeze(1)
    return decoded + dictionary.baseline(x.double())
