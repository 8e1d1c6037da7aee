"""What is absorbed of a letter on each word, and what its main latents hold of other letters.

For a word with activation x, unit probe p, codes a and decoder rows d (of any norm):
main = Σ over main latents of a_i d_i·p; absorbing = the largest a_i d_i·p of the other latents
with a cosine of at least `least_cosine` with p, at most `max_absorbing` of them; total = x·p.

Source: SAEBench's absorption fraction and full absorption, after arXiv 2409.14507.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.sparse import SparseCodes
from saelab.stats.cosines import unit_rows

SILENT = 1e-8
"""Codes below it count as silent, as in SAEBench."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What counts as absorbed; the settings of these names say more."""

    least_share: float = 0.4
    least_cosine: float = 0.1
    max_absorbing: int | None = 3
    full_cosine: float = 0.025


@dataclass(frozen=True, eq=False)
class Absorbed:
    """Per word, what is absorbed."""

    fraction: Float[Tensor, " words"]
    """min(absorbing, total − main) over that plus main; 0 where nothing is absorbed."""
    full: Bool[Tensor, " words"]
    """Whether one latent stands in for silent main latents."""
    latent: Int[Tensor, " words"]
    """The latent with the largest projection that is no main latent; −1 where none is positive."""
    main: Float[Tensor, " words"]
    total: Float[Tensor, " words"]


@torch.no_grad()
def absorption_of(
    codes: SparseCodes,
    x: Float[Tensor, "words d_out"],
    W_dec: Float[Tensor, "d_sae d_out"],
    probe: Float[Tensor, " d_out"],
    mains: Sequence[int],
    thresholds: Thresholds,
) -> Absorbed:
    """Absorption of one letter on words that have it, computed in float64.

    Args:
        codes: of the words.
        x: what the dictionary is to write there, in whose space the probe lies.
        probe: of any norm.
        mains: the letter's main latents.
    """
    direction = probe.double() / probe.double().norm()
    along = (W_dec.double() @ direction).cpu()
    cosine = (unit_rows(W_dec.double()) @ direction).cpu()
    total = (x.double() @ direction).cpu()
    values, rows, latents = codes.scaled_values().double(), codes.pair_rows(), codes.latent
    values, rows, latents = values.cpu(), rows.cpu(), latents.cpu()
    is_main = torch.zeros(len(along), dtype=torch.bool)
    is_main[list(mains)] = True
    projected, main_pair = values * along[latents], is_main[latents]
    main = torch.zeros_like(total).index_add_(0, rows[main_pair], projected[main_pair])
    silent = torch.ones(len(total), dtype=torch.bool)
    silent[rows[main_pair & (values.abs() >= SILENT)]] = False
    # Each word's other latents by falling projection, side by side.
    others = SparseCodes.from_pairs(
        rows[~main_pair], latents[~main_pair], projected[~main_pair], len(total), len(along)
    )
    table, which = _falling(others)
    able = (cosine[which] >= thresholds.least_cosine) & (table > 0)
    most = thresholds.max_absorbing
    if most is not None:
        able &= able.cumsum(1) <= most
    absorbing = torch.where(able, table, 0.0).sum(1)
    enough = (total > 0) & (main < total) & (absorbing >= thresholds.least_share * total)
    taken = torch.minimum(absorbing, total - main).clamp_min(0)
    # Where the main latents write nothing towards the letter, all of it is absorbed.
    part = torch.where(main <= 0, 1.0, taken / (taken + main).clamp_min(1e-300))
    strongest, stands_in = table[:, 0], which[:, 0]
    full = (
        silent
        & (total > 0)
        & (cosine[stands_in] >= thresholds.full_cosine)
        & (strongest >= thresholds.least_share * total)
        & (strongest > 0)
    )
    latent = torch.where(strongest > 0, stands_in, -1)
    return Absorbed(torch.where(enough, part, 0.0), full, latent, main, total)


def _falling(codes: SparseCodes) -> tuple[Float[Tensor, "rows most"], Int[Tensor, "rows most"]]:
    """Each row's values, falling, with their latents; filled up with zeros of latent 0."""
    order = codes.value.argsort(descending=True, stable=True)
    row = codes.pair_rows()[order]
    order = order[row.argsort(stable=True)]
    rows = codes.pair_rows()
    rank = torch.arange(len(rows)) - codes.row_pointer[rows]
    most = max(1, int(codes.row_pointer.diff().max())) if codes.n_rows else 1
    values = torch.zeros(codes.n_rows, most, dtype=codes.value.dtype)
    latents = torch.zeros(codes.n_rows, most, dtype=torch.int64)
    values[rows, rank], latents[rows, rank] = codes.value[order], codes.latent[order]
    return values, latents


def hedging_of(
    direction: Float[Tensor, " d_out"],
    probe: Float[Tensor, " d_out"],
    others: Float[Tensor, "letters d_out"],
) -> float:
    """Share of a decoder row's squared norm that lies along other letters' probes.

    ‖Q d‖² / ‖d‖² with Q the projection on the span of the other letters' probes less their parts
    along the letter's own probe. A latent of one letter has 0, one that merges two letters of
    orthogonal probes equally 0.5, a random direction (number of others) / d_out on average.

    Args:
        direction: decoder row of a main latent.
        probe: of its letter.
        others: probes of the other letters.

    Example:
        >>> basis = torch.eye(4)
        >>> round(hedging_of(basis[0] + basis[1], basis[0], basis[1:3]), 6)
        0.5
    """
    unit = probe.double() / probe.double().norm()
    rest = others.double() - (others.double() @ unit)[:, None] * unit
    basis = torch.linalg.svd(unit_rows(rest), full_matrices=False)
    spanned = basis.Vh[basis.S > 1e-6]
    row = direction.double()
    return float((spanned @ row).square().sum() / row.square().sum().clamp_min(1e-300))
