"""A small dictionary of a dictionary's decoder rows, with the batch's largest codes active.

BatchTopK of the rows about their mean (Bussmann et al., 2024, arXiv 2412.06410); all rows are at
hand, so what is explained is of the largest codes of all of them, without a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.sparse import PreActivations, SparseCodes, autoencode, select_batch_top
from saelab.stats.cosines import unit_rows
from saelab.stats.seeds import seeded_generator


class MetaDictionary(nn.Module):
    """Encoder, decoder and bias of a meta-dictionary.

    Args:
        rows: what it is to explain; the bias begins at their mean.
        width: its latents.
        generator: of the directions that encoder and decoder begin with.
    """

    def __init__(self, rows: Float[Tensor, "rows d_out"], width: int, generator: torch.Generator):
        super().__init__()
        directions = unit_rows(torch.randn(width, rows.shape[1], generator=generator)).to(rows)
        # By latent, so that both matrices have their latents contiguous.
        self.encoder = nn.Parameter(directions.clone())
        self.decoder = nn.Parameter(directions)
        self.b_enc = nn.Parameter(rows.new_zeros(width))
        self.b_dec = nn.Parameter(rows.mean(0))

    def forward(
        self,
        rows: Float[Tensor, "rows d_out"],
        n_pairs: int,
        floor: Float[Tensor, ""] | None = None,
    ) -> tuple[SparseCodes, Float[Tensor, "rows d_out"], Float[Tensor, ""]]:
        """Codes and reconstruction with the largest `n_pairs` codes of all rows active, and the
        floor to begin with in the next batch (`select_batch_top`)."""
        pre = PreActivations(rows - self.b_dec.detach(), self.encoder.detach().T, self.b_enc)
        top = select_batch_top(pre, n_pairs, floor)
        codes, reconstruction = autoencode(
            rows, self.encoder.T, self.b_enc, self.decoder, self.b_dec, top.codes
        )
        return codes, reconstruction, top.next_floor


@dataclass(frozen=True, kw_only=True)
class MetaTraining:
    """How a meta-dictionary is learnt: Adam on the squared error, decoder rows of norm 1."""

    width: int
    """Its latents."""
    k: int
    """Active ones of a row, on average over a batch."""
    n_steps: int
    """Steps."""
    batch_rows: int
    """Rows in a batch, drawn with replacement; all of them where there are fewer."""
    learning_rate: float
    """Of Adam."""

    def of(self, rows: Float[Tensor, "rows d_out"], seed: int) -> MetaDictionary:
        """Learn one of some rows."""
        generator = seeded_generator("meta-structure", seed)
        meta = MetaDictionary(rows, self.width, generator)
        optimizer = torch.optim.Adam(meta.parameters(), lr=self.learning_rate, fused=True)
        n_batch, floor = min(self.batch_rows, len(rows)), None
        for _ in range(self.n_steps):
            index = torch.randint(len(rows), (n_batch,), generator=generator)
            batch = rows[index.to(rows.device)]
            _, reconstruction, floor = meta(batch, self.k * n_batch, floor)
            optimizer.zero_grad()
            (batch - reconstruction).square().sum(1).mean().backward()
            optimizer.step()
            with torch.no_grad():
                meta.decoder.div_(meta.decoder.norm(dim=1, keepdim=True).clamp(min=1e-12))
        return meta


@torch.no_grad()
def explained(
    meta: MetaDictionary, rows: Float[Tensor, "rows d_out"], k: int
) -> tuple[float, Float[Tensor, " rows"], SparseCodes]:
    """Fraction of the rows' variance that a meta-dictionary explains.

    Returns:
        1 − Σ|w − ŵ|² / Σ|w − mean|², float64; by row |w − ŵ|²; and the codes.
    """
    codes, reconstruction, _ = meta(rows, k * len(rows))
    errors = (rows - reconstruction).double().square().sum(1)
    deviation = (rows - rows.mean(0)).double().square().sum()
    return 1 - float(errors.sum() / deviation), errors, codes


def random_rows(
    like: Float[Tensor, "rows d_out"], generator: torch.Generator, *, same_covariance: bool
) -> Float[Tensor, "rows d_out"]:
    """Gaussian rows of norm 1, as many as there are: isotropic, or with the mean and covariance of
    some rows.

    The covariance is exactly theirs before rows are brought to norm 1: drawn about it, a few rows
    in many dimensions would have a more uneven one.
    """
    if not same_covariance:
        return unit_rows(torch.randn(*like.shape, generator=generator)).to(like)
    rows = like.cpu().double()
    mean = rows.mean(0)
    _, spreads, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    kept = spreads > 1e-6 * spreads[0]
    drawn = torch.randn(len(rows), int(kept.sum()), generator=generator, dtype=torch.float64)
    independent = torch.linalg.qr(drawn - drawn.mean(0)).Q
    return unit_rows(independent * spreads[kept] @ directions[kept] + mean).to(like)
