"""Sums over rows that say how strongly each latent lies at each hook point of a crosscoder.

With f the codes of a latent j, d_h its decoder row at hook point h and m the hook point where that
is longest, all in units of each hook point's spread, the latent is scaled to what it may explain at
h (Minder et al., 2025, arXiv 2504.02922):

    β_h = argmin_β Σ ‖β f d_m − y_h‖² = Σ f (y_h · d_m) / (‖d_m‖² Σ f²)        ν_h = β_h / β_m

once with y_h the error that is left without the latent, x_h − x̂_h + f d_h, and once with the
reconstruction, of which we leave out the bias, which all rows share. Near zero: nothing of the
latent is at h. A ν of the error near one: its decoder there was shrunk away; of the reconstruction:
other latents say there what it says at m.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary
from saelab.sparse.kernels import pair_products
from saelab.stats.metrics import ReconstructionStatistics, SparsityStatistics


class HookPointSums:
    """Streamed sums of one crosscoder.

    Args:
        dictionary: the crosscoder.
        widths: of the hook points that it writes, side by side.
    """

    def __init__(self, dictionary: Dictionary, widths: Sequence[int]):
        self.dictionary, self.widths = dictionary, list(widths)
        device, d_sae = dictionary.W_dec.device, dictionary.d_sae
        self.sparsity = SparsityStatistics(d_sae, device)
        self.joint = ReconstructionStatistics(dictionary.d_out, device=device)
        self.reconstruction = [ReconstructionStatistics(w, device=device) for w in self.widths]
        self.decoders = [part.double() for part in dictionary.W_dec.split(self.widths, dim=1)]
        n = len(self.widths)
        self.code_squares = torch.zeros(d_sae, dtype=torch.float64, device=device)
        # [m, h]: of f (y_h · d_m); None where the two are of different width.
        shape = (n, n, d_sae)
        self.with_error = torch.zeros(shape, dtype=torch.float64, device=device)
        self.with_reconstruction = torch.zeros_like(self.with_error)

    @torch.no_grad()
    def update(
        self, inputs: Float[Tensor, "rows d_in"], targets: Float[Tensor, "rows d_out"]
    ) -> None:
        """Add rows."""
        codes = self.dictionary.encode(inputs)
        written = self.dictionary.decode(codes)
        self.sparsity.update(codes)
        self.joint.update(targets, written)
        value = codes.scaled_values().double()
        self.code_squares.index_add_(0, codes.latent, value.square())
        parts = [t.double().split(self.widths, dim=1) for t in (targets, written)]
        baseline = self.dictionary.baseline(inputs).double().split(self.widths, dim=1)
        for h, (x, hat, offset) in enumerate(zip(*parts, baseline, strict=True)):
            self.reconstruction[h].update(x, hat)
            for m, directions in enumerate(self.decoders):
                if directions.shape[1] != x.shape[1]:
                    continue
                for sums, y in (
                    (self.with_error, x - hat),
                    (self.with_reconstruction, hat - offset),
                ):
                    products = value * pair_products(codes, y, directions)
                    sums[m, h].index_add_(0, codes.latent, products)

    def spreads(self) -> list[float]:
        """Root mean square of the centred rows' norm at each hook point: the unit there."""
        return [float(each.moments.variance().sum().sqrt()) for each in self.reconstruction]

    def relative_norms(self) -> Float[Tensor, "hook_points d_sae"]:
        """Norm of each latent's decoder row at each hook point over the largest of them."""
        norms = torch.stack(
            [
                d.norm(dim=1) / spread
                for d, spread in zip(self.decoders, self.spreads(), strict=True)
            ]
        )
        return norms / norms.amax(0).clamp_min(1e-300)

    def nu(
        self, strongest: Int[Tensor, " d_sae"]
    ) -> tuple[Float[Tensor, "hook_points d_sae"], Float[Tensor, "hook_points d_sae"]]:
        """ν of the error and of the reconstruction at each hook point; NaN where undefined.

        Args:
            strongest: hook point m of each latent.
        """
        spreads, every = self.spreads(), torch.arange(len(strongest), device=strongest.device)
        widths = torch.tensor(self.widths, device=strongest.device)
        of_error, of_reconstruction = [], []
        for h, width in enumerate(self.widths):
            latent = self.code_squares * self._products(h)[strongest, every]
            undefined = torch.where(widths[strongest] == width, 0.0, torch.nan)
            error = self.with_error[strongest, h, every] + latent + undefined
            of_error.append(error / spreads[h])
            of_reconstruction.append(
                (self.with_reconstruction[strongest, h, every] + undefined) / spreads[h]
            )
        return _ratios(of_error, strongest), _ratios(of_reconstruction, strongest)

    def _products(self, h: int) -> Float[Tensor, "hook_points d_sae"]:
        """d_m · d_h of each latent, by m; zero where they are of different width."""
        there = self.decoders[h]
        return torch.stack(
            [
                (there * d).sum(1) if d.shape == there.shape else torch.zeros_like(there[:, 0])
                for d in self.decoders
            ]
        )


def _ratios(
    scaled: Sequence[Float[Tensor, " d_sae"]], strongest: Int[Tensor, " d_sae"]
) -> Float[Tensor, "hook_points d_sae"]:
    """Each over that at the strongest hook point; NaN where that is not positive."""
    stacked = torch.stack([*scaled])
    below = stacked.gather(0, strongest[None])
    return torch.where(below > 0, stacked / below, torch.nan)
