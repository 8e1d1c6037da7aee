"""Dictionaries over several layers, of which one layer is held at once: large or trained ones.

As one dictionary a cross-layer transcoder has an encoder of one block for each layer and a decoder
that is a block triangle, and more than half of both is zeros. Layer by layer it is a dictionary
for each hook point that is read, which writes that one and all later ones: codes stand side by
side, and reconstructions add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.errors import ConfigError
from saelab.sparse import SparseCodes

from .architectures import Dictionary


class LayeredDictionary(Dictionary):
    """A sum of dictionaries, each of which reads one hook point and writes it and all later ones.

    What a `Dictionary` does is done here too; whole matrices are refused, since nobody holds them.

    Args:
        layer: opens a layer, each time it is needed. None subtracts anything from its input or
            normalises rows; the bias of what is written is the first layer's, the others' is zero.
        sizes: latents of each layer.
        k: active latents per row, over all layers, for `topk` only. None: as many as each layer's.
    """

    def __init__(
        self, layer: Callable[[int], Dictionary], sizes: Sequence[int], k: int | None = None
    ):
        nn.Module.__init__(self)
        first = layer(0)
        self.layer = layer
        self.starts = [0, *accumulate(sizes)]
        """Where each layer's latents begin; last, how many there are."""
        self.width = first.d_in
        self.architecture, self.k = first.architecture, k or first.k
        self.k_of_layer = first.k or None
        """Active latents of each layer alone, before the largest over all are taken."""
        self.input_normalisation = "none"
        self.d_in = self.d_out = len(sizes) * first.d_in
        self.d_sae = self.starts[-1]
        self.register_buffer("b_in", torch.zeros(self.d_in))
        self.register_buffer("b_dec", first.b_dec)
        # The first layer's, which says that there is one.
        self.register_buffer("W_skip", first.W_skip)

    @property
    def n_layers(self) -> int:
        """Hook points that are read, and as many that are written."""
        return len(self.starts) - 1

    def require_whole(self) -> None:
        """Refuse what needs its whole matrices at once.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"this dictionary of {self.n_layers} layers is opened a layer at a time, and what was "
            "asked for needs its whole matrices at once: it has `saelab eval core`, `saelab info`, "
            "`saelab export --to circuit-tracer`, and in Python encode, decode and decoder_rows"
        )

    def tensors(self) -> dict[str, Tensor]:
        """Refused.

        Raises:
            ConfigError: always.
        """
        self.require_whole()
        return {}

    def __getattr__(self, name: str) -> Any:
        """What other dictionaries hold and this one does not is refused in words."""
        if name in ("W_enc", "W_dec", "b_enc", "threshold"):
            self.require_whole()
        return super().__getattr__(name)

    def decoder_rows(self, latents: Int[Tensor, " some"]) -> Float[Tensor, "some d_out"]:
        """What some latents write, zeros where they write nothing."""
        codes = SparseCodes.from_fixed_k(latents[:, None], torch.ones(len(latents), 1), self.d_sae)
        return self._combined(codes)

    def row_offset(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch _"] | None:
        """The affine skip of each row, where there is one."""
        if self.W_skip is None:
            return None
        return self.added(lambda index, layer: layer.baseline(self.read_by(index, x))) - self.b_dec

    def read_by(self, index: int, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch width"]:
        """What one layer reads of each row."""
        return x[:, index * self.width : (index + 1) * self.width]

    def added(self, term: Callable[[int, Dictionary], Tensor]) -> Tensor:
        """The sum of what each layer writes, at the hook points from its own on.

        Args:
            term: index and layer -> [rows, what that layer writes], a tensor of its own.
        """
        total = term(0, self.layer(0))
        for index in range(1, self.n_layers):
            total[:, index * self.width :] += term(index, self.layer(index))
        return total

    def _active(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        parts = [
            self.layer(index).to(x.device).encode(self.read_by(index, x).contiguous())
            for index in range(self.n_layers)
        ]
        latents = [part.latent + start for part, start in zip(parts, self.starts, strict=False)]
        codes = SparseCodes.from_pairs(
            torch.cat([part.pair_rows() for part in parts]),
            torch.cat(latents),
            torch.cat([part.value for part in parts]),
            len(x),
            self.d_sae,
        )
        return codes if self.architecture != "topk" else codes.largest(self.k)

    def _combined(
        self, codes: SparseCodes | Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, "batch d_out"]:
        sparse = codes if isinstance(codes, SparseCodes) else SparseCodes.from_dense(codes)
        return self.added(
            lambda index, layer: layer.to(sparse.value.device)._combined(
                sparse.of_latents(self.starts[index], self.starts[index + 1])
            )
        )


def in_layers(dictionary: Dictionary, n_layers: int) -> LayeredDictionary | None:
    """A cross-layer transcoder whose sources select each by itself, layer by layer; else None.

    One held as whole matrices is cut at its blocks where everything outside them is zero.
    """
    if isinstance(dictionary, LayeredDictionary):
        k = dictionary.k_of_layer
        apart = k is None or dictionary.k == k * dictionary.n_layers
        return dictionary if apart else None
    sizes = (dictionary.d_in, dictionary.d_out, dictionary.d_sae)
    if (
        dictionary.architecture not in ("relu", "jumprelu")
        or dictionary.input_normalisation != "none"
        or dictionary.d_in != dictionary.d_out
        or any(size % n_layers for size in sizes)
    ):
        return None
    layers = [_layer_of(dictionary, index, n_layers) for index in range(n_layers)]
    for name in ("W_enc", "W_dec", "W_skip"):
        if (whole := getattr(dictionary, name)) is None:
            continue
        if int(whole.count_nonzero()) != sum(int(getattr(e, name).count_nonzero()) for e in layers):
            return None
    unbiased = [each.with_input_bias(torch.zeros_like(each.input_bias)) for each in layers]
    return LayeredDictionary(unbiased.__getitem__, [dictionary.d_sae // n_layers] * n_layers)


def _layer_of(dictionary: Dictionary, index: int, n_layers: int) -> Dictionary:
    """The block of a source: what it reads of its own layer, and writes there and later."""
    width, size = dictionary.d_in // n_layers, dictionary.d_sae // n_layers
    start, latents = index * width, slice(index * size, (index + 1) * size)
    reads = slice(start, start + width)
    gates: dict[str, Any] = {
        name: tensor[latents]
        for name, tensor in dictionary.tensors().items()
        if name in ("b_enc", "threshold")
    }
    skip, b_dec = dictionary.W_skip, dictionary.b_dec[start:]
    return Dictionary(
        dictionary.architecture,
        W_enc=dictionary.W_enc[reads, latents],
        W_dec=dictionary.W_dec[latents, start:],
        b_dec=torch.zeros_like(b_dec) if index else b_dec,
        b_in=dictionary.input_bias[reads],
        W_skip=None if skip is None else skip[start:, reads],
        **gates,
    )
