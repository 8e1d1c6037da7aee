"""Weights of a cross-layer transcoder in training: an encoder for each layer read, and decoders.

Only what is not zero is held: each latent's encoder for its own layer, and its decoder rows for
that layer and all later ones, which together have norm one. `saelab.sparse.cross_layer` computes
with them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.dictionary import Dictionary
from saelab.dictionary.layered import LayeredDictionary
from saelab.sparse import (
    LayerPairs,
    LayerPreActivations,
    SparseCodes,
    decode_layers,
    decoder_pointer,
    encode_layers,
)

from ..interface import Normalisation
from .weights import AutoencoderWeights, normalise_rows


class CrossLayerWeights(AutoencoderWeights):
    """An encoder for each source layer, and decoders stored by source, latent and target.

    Nothing is subtracted from what is read: the encoder's biases do as well.

    Args:
        d: width of every hook point.
        d_sae: latents of all sources together.
        n_layers: hook points that are read, and as many that are written.
        encoder_scale: norm of each latent's encoder weights at the start.
    """

    def __init__(self, d: int, d_sae: int, n_layers: int, *, seed: int, encoder_scale: float):
        nn.Module.__init__(self)
        self.n_layers = n_layers
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(d_sae, d, generator=generator)
        directions *= encoder_scale / directions.norm(dim=1, keepdim=True)
        self.encoder_rows = nn.Parameter(directions)
        bounds = decoder_pointer(d_sae, n_layers)
        self.bounds = bounds[:: d_sae // n_layers].tolist()
        """Where each source's decoder rows begin; last, how many there are."""
        self.W_dec = nn.Parameter(torch.randn(self.bounds[-1], d, generator=generator))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(n_layers * d))
        self.b_in = self.W_skip = None
        for rows in self.by_latent(self.W_dec):
            normalise_rows(rows)

    def by_latent(self, decoder: Float[Tensor, "decoder_rows d"]) -> list[Tensor]:
        """A view [latents, targets · d] of each source's part of a tensor like the decoder."""
        size = len(self.encoder_rows) // self.n_layers
        return [decoder[start:stop].view(size, -1) for start, stop in pairwise(self.bounds)]

    def pre_activations(
        self,
        inputs: Float[Tensor, "rows d_in"],
        product_dtype: torch.dtype | None,
        b_enc: Float[Tensor, " d_sae"],
    ) -> LayerPreActivations:
        """The pre-activations of normalised inputs, to select from."""
        sizes = (len(self.encoder_rows) // self.n_layers,) * self.n_layers
        return LayerPreActivations(inputs, self.W_enc, b_enc, product_dtype, sizes=sizes)

    def pairs_of(self, selected: SparseCodes) -> LayerPairs:
        """What `encode` and `decode` need of selected pairs."""
        return LayerPairs.of(selected, self.n_layers)

    def encode(
        self,
        inputs: Float[Tensor, "rows d_in"],
        selected: SparseCodes,
        pairs: LayerPairs,
        b_enc: Float[Tensor, " d_sae"],
    ) -> Float[Tensor, " pairs"]:
        """The pre-activations of selected pairs, with gradients."""
        del selected
        return encode_layers(inputs, self.W_enc, b_enc, pairs)

    def decode(
        self, selected: SparseCodes, value: Float[Tensor, " pairs"], pairs: LayerPairs
    ) -> Float[Tensor, "rows d_out"]:
        """What selected pairs write with these values, without b_dec."""
        del selected
        return decode_layers(value, self.W_dec, pairs)

    @torch.no_grad()
    def to_dictionary(
        self,
        architecture: str,
        normalisation: Normalisation,
        *,
        k: int | None = None,
        threshold: Float[Tensor, " d_sae"] | None = None,
    ) -> LayeredDictionary:
        """The transcoder on activations in the model's own units, a dictionary for each source.

        Codes come to be in units of what is written, as `AutoencoderWeights.fold` has it; what is
        subtracted from the input goes into the encoder's biases.

        Args:
            k: of all sources together; each has an equal part.
            threshold: in units of the codes.
        """
        n, d, unit = self.n_layers, self.W_enc.shape[0], normalisation.code_scale
        size, written = len(self.encoder_rows) // n, normalisation.of_targets
        into = torch.as_tensor(normalisation.scale / unit).to(self.W_dec).expand(n * d).view(n, d)
        out = torch.as_tensor(unit / written.scale).to(self.W_dec).expand(n * d)
        means = normalisation.mean.view(n, d)
        b_dec = written.mean + self.b_dec / written.scale
        layers = []
        for index, decoder in enumerate(self.by_latent(self.W_dec)):
            latents = slice(index * size, (index + 1) * size)
            W_enc = self.W_enc[:, latents] * into[index][:, None]
            gate: dict[str, Any] = {}
            if threshold is not None:
                gate["threshold"] = threshold[latents].clone()
            layers.append(
                Dictionary(
                    architecture,
                    W_enc=W_enc,
                    b_enc=self.b_enc[latents] / unit - means[index] @ W_enc,
                    W_dec=decoder * out[index * d :],
                    b_dec=b_dec if index == 0 else torch.zeros_like(b_dec[index * d :]),
                    b_in=torch.zeros_like(means[index]),
                    k=k and k // n,
                    **gate,
                )
            )
        return LayeredDictionary(layers.__getitem__, [size] * n, k)
