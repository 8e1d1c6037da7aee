"""Pairs whose latents read one layer each and write that layer and all later ones.

Rows hold the layers side by side, [rows, layers · d]. Latents are numbered source by source,
equally many for each. Seen layer by layer, as [rows · layers, d], such a transcoder is an
autoencoder of the usual kernels, once its pairs say which of these rows they read and write:

* a pair (r, latent of source s) reads row r · layers + s;
* it writes rows r · layers + t for every t ≥ s, each with a decoder row of its own. These lie by
  latent and then by target in one matrix [decoder_rows, d], so all sources are decoded at once.

Nothing of shape [rows, layers · d_sae, d] is formed, nor are the zeros of the block matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .autoencode import decode_selected, encode_selected
from .backends import backend_of
from .codes import SparseCodes, pointer_of
from .kernels import TransposedPairs, pair_products
from .selection import PreActivations, top_k


@dataclass(frozen=True, eq=False)
class LayerPreActivations(PreActivations):
    """Pre-activations of latents that each read one layer; codes list a row's by source."""

    inputs: Float[Tensor, "rows all_layers"]
    """What is encoded, all layers side by side."""
    W_enc: Float[Tensor, "d d_sae"]
    """Encoder weights of every latent for the one layer that it reads."""
    sizes: tuple[int, ...] = field(kw_only=True)
    """Latents of each source, in order."""

    def product(self, inputs: Tensor, W_enc: Tensor, b_enc: Tensor, out: Tensor) -> None:
        """A product for each layer, into its columns."""
        layers = inputs.split(W_enc.shape[0], dim=1)
        of_latents = (t.split(self.sizes, dim=-1) for t in (W_enc, b_enc, out))
        for rows, weights, biases, columns in zip(layers, *of_latents, strict=True):
            torch.addmm(biases, rows, weights, out=columns)

    def ordered(self, codes: SparseCodes) -> SparseCodes:
        """The same pairs, those of a row by latent and so by source."""
        row = codes.pair_rows()
        order = backend_of(row).stable_order(row * codes.d_sae + codes.latent)
        return replace(codes, latent=codes.latent[order], value=codes.value[order])

    @torch.no_grad()
    def exact(self, codes: SparseCodes) -> SparseCodes:
        """The pairs in order, with their pre-activations at the precision of the inputs."""
        codes = self.ordered(codes)
        ends = torch.tensor([*accumulate(self.sizes)], device=codes.latent.device)
        source = torch.searchsorted(ends, codes.latent, right=True)
        by_layer = _by_layer(codes, source, len(self.sizes))
        rows = self.inputs.reshape(-1, self.W_enc.shape[0])
        products = pair_products(by_layer, rows, self.W_enc.T)
        return codes.with_value(products + self.b_enc[codes.latent])

    def of_latents(self, latents: Int[Tensor, " some"]) -> LayerPreActivations:
        """Those of some latents alone, given in rising order."""
        bounds = torch.tensor([0, *accumulate(self.sizes)], device=latents.device)
        sizes = torch.searchsorted(latents, bounds).diff().tolist()
        W_enc, b_enc = self.W_enc.T[latents].T, self.b_enc[latents]
        return replace(self, W_enc=W_enc, b_enc=b_enc, sizes=tuple(sizes))


def select_top_k_of_each_layer(pre: LayerPreActivations, k: int) -> SparseCodes:
    """The k largest pre-activations of each row among the latents of every source, negative ones
    included.

    Args:
        pre: with equally many latents for each source.
    """
    values, latents = [], []
    n_layers, size = len(pre.sizes), pre.sizes[0]
    starts = torch.arange(n_layers, device=pre.inputs.device) * size
    for _, chunk in pre.chunks():
        largest, indices = top_k(chunk.view(-1, size), k)
        indices = indices.view(len(chunk), n_layers, -1) + starts[:, None]
        latents.append(indices.flatten(1))
        values.append(largest.view(len(chunk), -1))
    codes = SparseCodes.from_fixed_k(torch.cat(latents), torch.cat(values), pre.shape[1])
    return codes if codes.value.dtype == pre.inputs.dtype else pre.exact(codes)


@dataclass(frozen=True, eq=False)
class LayerPairs:
    """The pairs of some codes by the layer they read, and by every layer they write."""

    read: SparseCodes
    """The pairs as they are, over rows layer by layer."""
    read_by_latent: TransposedPairs
    written: SparseCodes
    """A pair for every layer written: latents are decoder rows, values play no part."""
    written_by_row: TransposedPairs
    """The same by decoder row."""
    pair: Int[Tensor, " written"]
    """Which pair each of `written` is of."""

    @staticmethod
    def of(selected: SparseCodes, n_layers: int) -> LayerPairs:
        """Sort out the pairs of codes whose rows list them by source."""
        size = selected.d_sae // n_layers
        source = torch.div(selected.latent, size, rounding_mode="floor")
        read = _by_layer(selected, source, n_layers)
        # A row writes layer t with its pairs of the sources up to t, which come first in it.
        counts = read.row_pointer.diff().view(-1, n_layers).cumsum(1).flatten()
        pointer, device = pointer_of(counts), counts.device
        first = selected.row_pointer[:-1].repeat_interleave(n_layers) - pointer[:-1]
        target = torch.arange(n_layers, device=device).repeat(selected.n_rows)
        pair = first.repeat_interleave(counts)
        pair += torch.arange(pair.shape[0], device=device)
        start = decoder_pointer(selected.d_sae, n_layers).to(device)[selected.latent] - source
        decoder_row = start[pair] + target.repeat_interleave(counts)
        n_decoder_rows = selected.d_sae * (n_layers + 1) // 2
        value = selected.value.detach()[pair]
        written = SparseCodes(pointer, decoder_row, value, n_decoder_rows)
        return LayerPairs(
            read, TransposedPairs.of(read), written, TransposedPairs.of(written), pair
        )


def decoder_pointer(d_sae: int, n_layers: int) -> Int[Tensor, " d_sae_plus_one"]:
    """Where each latent's decoder rows begin; last, how many there are."""
    written = torch.arange(n_layers, 0, -1).repeat_interleave(d_sae // n_layers)
    return pointer_of(written)


def encode_layers(
    inputs: Float[Tensor, "rows all_layers"],
    W_enc: Float[Tensor, "d d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    pairs: LayerPairs,
) -> Float[Tensor, " pairs"]:
    """The pre-activations of the pairs, differentiable in everything but the selection."""
    rows = inputs.reshape(-1, W_enc.shape[0])
    nothing = W_enc.new_zeros(W_enc.shape[0])
    return encode_selected(rows, W_enc, b_enc, nothing, pairs.read, pairs.read_by_latent)


def decode_layers(
    value: Float[Tensor, " pairs"], decoder: Float[Tensor, "decoder_rows d"], pairs: LayerPairs
) -> Float[Tensor, "rows all_layers"]:
    """The sum of what the pairs write at every layer, with `value` as weights; no bias is added."""
    # index_select, whose gradient is summed in a fixed order.
    weights = value.index_select(0, pairs.pair)
    by_layer = decode_selected(pairs.written, weights, decoder, pairs.written_by_row)
    n_layers = 2 * decoder.shape[0] // pairs.read.d_sae - 1
    return by_layer.view(-1, n_layers * decoder.shape[1])


def _by_layer(codes: SparseCodes, source: Int[Tensor, " pairs"], n_layers: int) -> SparseCodes:
    """The same pairs in the same order over rows layer by layer; a row lists them by source."""
    counts = codes.latent.new_zeros(codes.n_rows * n_layers)
    row = codes.pair_rows() * n_layers + source
    counts.index_add_(0, row, torch.ones_like(row))
    return replace(codes, row_pointer=pointer_of(counts))
