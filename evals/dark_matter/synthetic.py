"""Does the split of the error find planted noise? Dense and introduced noise of known size (A11).

Reconstructions x₀ of real rows stand for activations of true features only. Dense(x) is played by
s_a n₁ added to the activation, Introduced(x) by s_r n₂ added to the reconstruction, absent features
by latents that the reconstruction leaves out:

    x' = x₀ + s_a n₁      reconstruction = decode(kept latents of encode(x₀)) + s_r n₂

The linear share FVU − FVU_nonlinear should follow s_a, the nonlinear share FVU_nonlinear should
follow s_r and stay flat as latents are left out. Everything is linear in x₀, n₁, n₂ and the decoded
latents, so one pass collects their moments and every cell of the grid is exact algebra on them.

Unlike the published code (arXiv 2410.14670), fits are scored on other rows than they saw, FVU is
about per-dimension means, and noise is in units of the rows' own standard deviation.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.errors import ActivationError
from saelab.formats.files import hash_of
from saelab.progress import progress_bar

from .noise_moments import NoiseMoments
from .regression import RIDGE

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Standard deviations of both noises in the grid, in units of x₀'s per-dimension one."""
EXTRA_CELLS = ((0.25, 0.15), (0.15, 0.25))
"""Further cells (s_a, s_r), in the proportions of the paper's."""
ABLATED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the latents that are left out, those of the lowest mean code first."""
LINE_CELLS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), *EXTRA_CELLS)
"""Cells that are followed over `ABLATED`."""
BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class SyntheticCell:
    """One setting of planted noise and what the split found."""

    dense: float
    """s_a, in units of x₀'s standard deviation."""
    introduced: float
    """s_r, in the same units."""
    ablated: float
    """Share of latents left out."""
    fvu: float
    """FVU of the reconstruction, on held-out rows."""
    fvu_nonlinear: float
    """FVU once the linear prediction of the error is added, on held-out rows."""

    @property
    def linear(self) -> float:
        """The estimate of what is linear: FVU − FVU_nonlinear."""
        return self.fvu - self.fvu_nonlinear


@dataclass(frozen=True, kw_only=True)
class SyntheticFindings:
    """The grid, the lines over left-out latents, and the correlations over the grid."""

    grid: list[SyntheticCell]
    """Every pair of `LEVELS` and the extra cells, no latent left out."""
    lines: list[SyntheticCell]
    """`LINE_CELLS` over `ABLATED`."""
    correlations: dict[tuple[str, str], float | None]
    """Pearson correlation, over the pairs of `LEVELS`, of the standard deviation of the "dense" or
    "introduced" noise with the "linear" or "nonlinear" estimate; None where one is constant."""
    deviation: float
    """Standard deviation of x₀ per dimension, root mean square over dimensions."""
    n_train_rows: int
    """Rows that fits saw."""
    n_test_rows: int
    """Rows that they are scored on."""
    n_never_active: int
    """Latents never active on these rows; they are left out first."""


@torch.no_grad()
def validate(
    saved: SavedDictionary,
    rows: Float[Tensor, "rows d_in"],
    *,
    seed: int = 0,
    train_fraction: float = 0.6,
    ridge: float = RIDGE,
) -> SyntheticFindings:
    """Plant noise on a dictionary's reconstructions and see what the split finds.

    Args:
        saved: the dictionary.
        rows: real activations in reading order; the first `train_fraction` of them are fitted on.
        seed: draws the noise.
        train_fraction: share of the rows that fits see.
        ridge: regularisation of the fits; x₀ alone is rank-deficient where few latents are live.

    Raises:
        ActivationError: too few rows, or rows that do not vary.
    """
    dictionary = saved.dictionary
    clean = torch.cat([dictionary(part) for part in rows.split(BATCH_ROWS)])
    codes_mean = torch.zeros(dictionary.d_sae, dtype=torch.float64, device=clean.device)
    for part in clean.split(BATCH_ROWS):
        codes = dictionary.encode(part)
        codes_mean.index_add_(0, codes.latent, codes.value.double())
    deviation = float(clean.double().var(0, unbiased=False).mean().sqrt())
    if not deviation > 0:
        raise ActivationError(
            f"the reconstructions of {saved.folder} do not vary on these {len(rows)} rows: nothing "
            "can be planted on them"
        )
    kept = _kept_latents(codes_mean)
    moments = _collect(saved, clean, kept, deviation, seed, train_fraction)
    grid = [
        _cell(moments, dense, introduced, 0, ridge)
        for dense, introduced in (*((a, r) for a in LEVELS for r in LEVELS), *EXTRA_CELLS)
    ]
    lines = [
        _cell(moments, dense, introduced, place, ridge)
        for dense, introduced in LINE_CELLS
        for place in range(len(ABLATED))
    ]
    return SyntheticFindings(
        grid=grid,
        lines=lines,
        correlations=_correlations(grid[: len(LEVELS) ** 2]),
        deviation=deviation,
        n_train_rows=moments[0].n_rows,
        n_test_rows=moments[1].n_rows,
        n_never_active=int((codes_mean == 0).sum()),
    )


def _kept_latents(mean: Float[Tensor, " d_sae"]) -> list[Bool[Tensor, " d_sae"]]:
    """For each share of `ABLATED`, the latents that stay: those of the lowest mean go first."""
    order = torch.sort(mean, stable=True).indices
    kept = []
    for share in ABLATED:
        mask = torch.ones(len(mean), dtype=torch.bool, device=mean.device)
        mask[order[: round(share * len(mean))]] = False
        kept.append(mask)
    return kept


def _collect(
    saved: SavedDictionary,
    clean: Float[Tensor, "rows d_in"],
    kept: list[Bool[Tensor, " d_sae"]],
    deviation: float,
    seed: int,
    train_fraction: float,
) -> tuple[NoiseMoments, NoiseMoments]:
    """Moments of the rows that fits see, and of the others."""
    d_in, n_train = clean.shape[1], round(train_fraction * len(clean))
    generator = torch.Generator().manual_seed(int(hash_of(["planted noise", seed])[:15], 16))
    found = []
    with progress_bar(len(clean), "planted noise", "rows") as bar:
        for rows in (clean[:n_train], clean[n_train:]):
            moments = NoiseMoments(d_in, len(kept), device=clean.device)
            for part in rows.split(BATCH_ROWS):
                noise = [
                    deviation * torch.randn(part.shape, generator=generator).to(part)
                    for _ in range(2)
                ]
                codes = saved.dictionary.encode(part)
                decoded = [saved.dictionary.decode(codes.keep(mask[codes.latent])) for mask in kept]
                moments.update(part, noise[0], noise[1], decoded)
                bar.update(len(part))
            found.append(moments)
    return found[0], found[1]


def _cell(
    moments: tuple[NoiseMoments, NoiseMoments],
    dense: float,
    introduced: float,
    place: int,
    ridge: float,
) -> SyntheticCell:
    train, test = (part.regression(dense, introduced, place) for part in moments)
    fitted = train.fit(ridge=ridge, what="the split of planted errors", rank_level=logging.DEBUG)
    variance = float(test.gram.diagonal().sum())
    squares = test.squares + test.n_rows * test.mean_targets.square()
    return SyntheticCell(
        dense=dense,
        introduced=introduced,
        ablated=ABLATED[place],
        fvu=float(squares.sum()) / variance,
        fvu_nonlinear=float(test.score(fitted).squared_error.sum()) / variance,
    )


def _correlations(grid: list[SyntheticCell]) -> dict[tuple[str, str], float | None]:
    planted = {name: [getattr(cell, name) for cell in grid] for name in ("dense", "introduced")}
    found = {
        "linear": [cell.linear for cell in grid],
        "nonlinear": [cell.fvu_nonlinear for cell in grid],
    }
    return {
        (noise, estimate): _correlation(planted[noise], found[estimate])
        for noise in planted
        for estimate in found
    }


def _correlation(one: list[float], other: list[float]) -> float | None:
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (one, other))
    x, y = x - x.mean(), y - y.mean()
    below = float(x.norm() * y.norm())
    return float(x @ y) / below if below > 0 else None
