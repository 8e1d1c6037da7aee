"""The encoder's dense product, taken in chunks of rows, and the exact top-k of each chunk.

The full [rows, d_sae] matrix of pre-activations never exists: a chunk small enough to stay in cache
is computed into a reused workspace, read by whoever selects from it, and overwritten. That saves
the page faults and the memory traffic of a temporary a hundred times the size of its result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .backends import backend_of
from .codes import SparseCodes
from .kernels import pair_products


@dataclass(frozen=True, eq=False)
class PreActivations:
    """The pre-activations `inputs @ W_enc + b_enc`, of which only what is selected is ever kept.

    No gradient flows through them.
    """

    inputs: Float[Tensor, "rows d_in"]
    """What is encoded, with the input bias subtracted where there is one."""
    W_enc: Float[Tensor, "d_in d_sae"]
    """Encoder weights."""
    b_enc: Float[Tensor, " d_sae"]
    """Encoder bias."""
    product_dtype: torch.dtype | None = None
    """Dtype of the dense product, by which pairs are chosen; None: that of the inputs. The values
    of chosen pairs are computed again at the precision of the inputs: that costs pairs × d_in."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and latents."""
        return self.inputs.shape[0], self.W_enc.shape[1]

    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "chunk d_sae"]]]:
        """All of them chunk by chunk, in the dtype of the product, with the rows of each chunk.

        The yielded tensor is a workspace: it is overwritten by the next chunk, and its reader may
        overwrite it too.
        """
        dtype = self.product_dtype or self.inputs.dtype
        rows, d_sae = self.shape
        chunk_rows = backend_of(self.inputs).chunk_rows
        inputs, W_enc, b_enc = (t.detach().to(dtype) for t in (self.inputs, self.W_enc, self.b_enc))
        workspace = inputs.new_empty(min(chunk_rows, rows), d_sae)
        for start in range(0, rows, chunk_rows):
            part = slice(start, min(start + chunk_rows, rows))
            out = workspace[: part.stop - part.start]
            self.product(inputs[part], W_enc, b_enc, out)
            yield part, out

    def product(
        self,
        inputs: Float[Tensor, "chunk _"],
        W_enc: Float[Tensor, "_ d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        out: Float[Tensor, "chunk d_sae"],
    ) -> None:
        """Those of a chunk of rows, into `out`."""
        torch.addmm(b_enc, inputs, W_enc, out=out)

    def ordered(self, codes: SparseCodes) -> SparseCodes:
        """The same pairs in the order that decoding them needs: any."""
        return codes

    @torch.no_grad()
    def exact(self, codes: SparseCodes) -> SparseCodes:
        """The same pairs with their pre-activations, at the precision of the inputs, as values."""
        products = pair_products(codes, self.inputs, self.W_enc.T)
        return codes.with_value(products + self.b_enc[codes.latent])

    def of_latents(self, latents: Int[Tensor, " some"]) -> PreActivations:
        """Those of some latents alone; the product costs their share of the full one."""
        return replace(self, W_enc=self.W_enc.T[latents].T, b_enc=self.b_enc[latents])


def top_k(
    scores: Float[Tensor, "rows d_sae"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest entries of each row and their indices, in no particular order, exactly."""
    return backend_of(scores).top_k(scores, k)


def select_top_k(pre: PreActivations, k: int) -> SparseCodes:
    """The k largest pre-activations of each row, negative ones included."""
    parts = [top_k(chunk, k) for _, chunk in pre.chunks()]
    if not parts:
        parts = [(pre.inputs.new_zeros(0, 0), torch.zeros(0, 0, dtype=torch.int64))]
    values, latents = (torch.cat(column) for column in zip(*parts, strict=True))
    codes = SparseCodes.from_fixed_k(latents, values, pre.shape[1])
    return pre.ordered(codes) if values.dtype == pre.inputs.dtype else pre.exact(codes)


@torch.no_grad()
def select_boosted_top_k(
    pre: PreActivations,
    k: int,
    gradients: Float[Tensor, "rows d_out"],
    W_dec: Float[Tensor, "d_sae d_out"],
) -> SparseCodes:
    """Top-k by the score z · (1 + |g · W_dec|), with the pre-activation z itself as the value.

    A second dense product, of the gradients with the decoder's rows, runs beside the encoder's,
    chunk by chunk. The factor is at least one, so only the order among positive pre-activations
    changes (Olmo et al., 2024, arXiv 2411.10397, Figure 1; the scale of g carries β).

    Args:
        gradients: of the loss with respect to the row, multiplied by β.
        W_dec: decoder weights, rows of norm one.
    """
    d_sae = W_dec.shape[0]
    projected = PreActivations(gradients, W_dec.T, W_dec.new_zeros(d_sae), pre.product_dtype)
    indices = []
    for (_, scores), (_, attribution) in zip(pre.chunks(), projected.chunks(), strict=True):
        indices.append(top_k(attribution.abs_().add_(1).mul_(scores), k)[1])
    if not indices:
        indices.append(torch.zeros(0, 0, dtype=torch.int64, device=gradients.device))
    latents = torch.cat(indices)
    zeros = pre.inputs.new_zeros(latents.shape)
    return pre.exact(SparseCodes.from_fixed_k(latents, zeros, d_sae))
