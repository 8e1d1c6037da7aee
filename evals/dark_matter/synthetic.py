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
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.errors import ActivationError
from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import Table
from saelab.progress import progress_bar
from saelab.stats.seeds import seeded_generator
from saelab.stats.spread import pearson

from .analysis import AnalysisContext, AnalysisResult, Finding, in_words
from .regression import RIDGE, CrossStatistics, RegressionMoments
from .rows import BATCH_ROWS, in_batches


class NoiseMoments:
    """Streamed moments of clean rows, two noises, and several reconstructions of the clean rows."""

    def __init__(self, d_in: int, n_reconstructions: int, device: torch.device | str = "cpu"):
        self.d_in = d_in
        n_parts = 3 + n_reconstructions
        # Regressors are mixtures of clean rows and the first noise; errors of all parts.
        self._sums = CrossStatistics(2 * d_in, n_parts * d_in, device=device)
        self._squares = torch.zeros(n_parts, n_parts, d_in, dtype=torch.float64, device=device)

    def update(
        self,
        clean: Float[Tensor, "rows d_in"],
        dense: Float[Tensor, "rows d_in"],
        introduced: Float[Tensor, "rows d_in"],
        reconstructions: Sequence[Float[Tensor, "rows d_in"]],
    ) -> None:
        """Add rows.

        Raises:
            ActivationError: a value is not finite.
        """
        parts = [clean, dense, introduced, *reconstructions]
        columns = torch.stack([part.double() for part in parts])
        mixed, every = (rearrange(c, "part row d -> row (part d)") for c in (columns[:2], columns))
        self._sums.update(mixed, every)
        self._squares += einsum(columns, columns, "a row d, b row d -> a b d")

    @property
    def n_rows(self) -> int:
        """Rows seen."""
        return self._sums.merged().n_rows

    def regression(self, dense: float, introduced: float, reconstruction: int) -> RegressionMoments:
        """Moments of the error x' − reconstruction' on x'.

        Args:
            dense: s_a in x' = clean + s_a · first noise.
            introduced: s_r in reconstruction' = reconstruction + s_r · second noise.
            reconstruction: which of the reconstructions.
        """
        sums, d = self._sums.merged(), self.d_in
        mixture = torch.zeros(self._squares.shape[0]).to(sums.cross)
        mixture[:3] = torch.tensor([1.0, dense, -introduced])
        mixture[3 + reconstruction] = -1
        regressors = mixture[:2]
        blocks = sums.cross.view(2, d, -1, d)
        mixed = torch.einsum("a,aibj->ibj", regressors, blocks)
        mean_targets = mixture @ sums.mean_targets.view(-1, d)
        raw_squares = torch.einsum("a,b,abj->j", mixture, mixture, self._squares)
        return RegressionMoments(
            n_rows=sums.n_rows,
            mean_regressors=regressors @ sums.mean_regressors.view(2, d),
            mean_targets=mean_targets,
            gram=torch.einsum("b,ibj->ij", regressors, mixed[:, :2]),
            cross=torch.einsum("b,ibj->ij", mixture, mixed),
            squares=(raw_squares - sums.n_rows * mean_targets.square()).clamp(min=0),
        )


LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Standard deviations of both noises in the grid, in units of x₀'s per-dimension one."""
EXTRA_CELLS = ((0.25, 0.15), (0.15, 0.25))
"""Further cells (s_a, s_r), in the proportions of the paper's."""
ABLATED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the latents that are left out, those of the lowest mean code first."""
LINE_CELLS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), *EXTRA_CELLS)
"""Cells that are followed over `ABLATED`."""


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
        rows: real activations in reading order; the first `train_fraction` of them are fitted on.
        ridge: of the fits: x₀ alone is rank-deficient where few latents are live.

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
    train, test = _collect(saved, clean, _kept_latents(codes_mean), deviation, seed, train_fraction)

    def cell(dense: float, introduced: float, index: int = 0) -> SyntheticCell:
        fit_moments, moments = (sums.regression(dense, introduced, index) for sums in (train, test))
        what = "the split of planted errors"
        fitted = fit_moments.fit(ridge=ridge, what=what, rank_level=logging.DEBUG)
        variance = float(moments.gram.diagonal().sum())
        return SyntheticCell(
            dense=dense,
            introduced=introduced,
            ablated=ABLATED[index],
            fvu=float(moments.raw_squares().sum()) / variance,
            fvu_nonlinear=float(moments.score(fitted).squared_error.sum()) / variance,
        )

    grid = [cell(*levels) for levels in product(LEVELS, LEVELS)]
    return SyntheticFindings(
        grid=[*grid, *(cell(*levels) for levels in EXTRA_CELLS)],
        lines=[cell(*levels, index) for levels in LINE_CELLS for index in range(len(ABLATED))],
        correlations=_correlations(grid),
        deviation=deviation,
        n_train_rows=train.n_rows,
        n_test_rows=test.n_rows,
        n_never_active=int((codes_mean == 0).sum()),
    )


def _kept_latents(mean: Float[Tensor, " d_sae"]) -> list[Bool[Tensor, " d_sae"]]:
    """For each share of `ABLATED`, the latents that stay: those of the lowest mean go first."""
    rank = mean.argsort(stable=True).argsort()
    return [rank >= round(share * len(mean)) for share in ABLATED]


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
    generator = seeded_generator("planted noise", seed)
    sums = [NoiseMoments(d_in, len(kept), device=clean.device) for _ in range(2)]
    with progress_bar(len(clean), "planted noise", "rows") as bar:
        for moments, rows in zip(sums, (clean[:n_train], clean[n_train:]), strict=True):
            for part in rows.split(BATCH_ROWS):
                dense, introduced = (
                    deviation * torch.randn(part.shape, generator=generator).to(part)
                    for _ in range(2)
                )
                codes = saved.dictionary.encode(part)
                decoded = [saved.dictionary.decode(codes.keep(mask[codes.latent])) for mask in kept]
                moments.update(part, dense, introduced, decoded)
                bar.update(len(part))
    return sums[0], sums[1]


def _correlations(grid: list[SyntheticCell]) -> dict[tuple[str, str], float | None]:
    columns = {
        name: torch.tensor([getattr(cell, name) for cell in grid], dtype=torch.float64)
        for name in ("dense", "introduced", "linear", "fvu_nonlinear")
    }
    return {
        (noise, estimate): pearson(columns[noise], columns[name])
        for noise in ("dense", "introduced")
        for estimate, name in (("linear", "linear"), ("nonlinear", "fvu_nonlinear"))
    }


ESTIMATES = {"linear": "FVU − FVU_nonlinear", "nonlinear": "FVU_nonlinear"}


def numbers(findings: SyntheticFindings) -> dict[str, Finding]:
    """Every number by name."""
    scope = (
        f"fitted on {findings.n_train_rows:,} rows of planted noise and scored on "
        f"{findings.n_test_rows:,} others"
    )
    clean = findings.grid[0]
    by_name = {
        f"synthetic_correlation_{noise}_{estimate}": Finding(
            value,
            f"Pearson correlation of the standard deviation of planted {noise} noise with "
            f"{ESTIMATES[estimate]} over a 5 × 5 grid of both noises; {scope}.",
        )
        for (noise, estimate), value in findings.correlations.items()
    }
    return by_name | {
        "synthetic_fvu_clean": Finding(
            clean.fvu,
            "FVU of encoding and decoding a reconstruction once more, with no noise planted: what "
            f"is there before anything is planted; {scope}.",
        ),
        "synthetic_fvu_nonlinear_clean": Finding(
            clean.fvu_nonlinear, f"FVU_nonlinear there, with no noise planted; {scope}."
        ),
        "synthetic_deviation": Finding(
            findings.deviation,
            "Standard deviation of a reconstruction's entry about its dimension's mean, root mean "
            "square over dimensions: the unit of the planted noise.",
            "activation units",
        ),
        "synthetic_never_active": Finding(
            findings.n_never_active,
            "Latents that are never active on these rows; they are left out first.",
            "latents",
        ),
    }


def synthetic_charts(findings: SyntheticFindings) -> list[Chart]:
    """Both estimates against both planted noises, and over the share of latents left out."""
    return [_grid_chart(findings), _ablation_chart(findings)]


def _grid_chart(findings: SyntheticFindings) -> Chart:
    stated = ", ".join(
        f"{noise} noise with the {estimate} share {in_words(value)}"
        for (noise, estimate), value in findings.correlations.items()
    )
    estimates = {"linear": "linear", "fvu_nonlinear": "nonlinear"}
    series = []
    for along, fixed in (("dense", "introduced"), ("introduced", "dense")):
        cells = [cell for cell in findings.grid if getattr(cell, fixed) == 0]
        series += [
            Series(
                name=f"{words} share by {along} noise",
                x=[getattr(cell, along) for cell in cells],
                y=[getattr(cell, estimate) for cell in cells],
                mark="lines+dots",
                dashed=along == "introduced",
            )
            for estimate, words in estimates.items()
        ]
    return Chart(
        name="synthetic_grid",
        title="Planted noise and what the split finds",
        caption="Noise planted on the dictionary's own reconstructions: dense noise on the "
        "activation, introduced noise on the reconstruction. Linear share: FVU − FVU_nonlinear; "
        "nonlinear share: FVU_nonlinear; fitted on "
        f"{findings.n_train_rows:,} rows, scored on {findings.n_test_rows:,} others. Each line has "
        "the other noise at zero; a table holds the whole grid. Pearson correlations over the "
        f"5 × 5 grid: {stated}.",
        x=Axis(title="planted noise (standard deviations of the rows)"),
        y=Axis(title="estimate (share of variance)"),
        series=tuple(series),
        height=400,
        wide=True,
    )


def _ablation_chart(findings: SyntheticFindings) -> Chart:
    series = []
    for index, setting in enumerate(LINE_CELLS):
        cells = [cell for cell in findings.lines if (cell.dense, cell.introduced) == setting]
        dense, introduced = setting
        series += [
            Series(
                name=f"{label}, dense {dense:g}, introduced {introduced:g}",
                x=[100 * cell.ablated for cell in cells],
                y=[getattr(cell, key) for cell in cells],
                mark="lines+dots",
                style=index,
                dashed=key == "fvu_nonlinear",
            )
            for key, label in (("fvu", "FVU"), ("fvu_nonlinear", "nonlinear"))
        ]
    return Chart(
        name="synthetic_ablation",
        title="Planted noise while latents are left out",
        caption="Latents of the lowest mean code are left out of the reconstruction first. FVU "
        "(solid) should rise; FVU_nonlinear (dashed) should stay where the planted noise puts it. "
        "Noise in standard deviations of the rows.",
        x=Axis(title="latents left out (%)"),
        y=Axis(title="share of variance"),
        series=tuple(series),
        height=400,
        wide=True,
    )


def synthetic_table(findings: SyntheticFindings) -> Table:
    """Every cell of planted noise: the grid, then the lines over latents left out."""
    columns = {
        "dense noise": "dense",
        "introduced noise": "introduced",
        "left out": "ablated",
        "FVU": "fvu",
        "linear share": "linear",
        "nonlinear share": "fvu_nonlinear",
    }
    return Table(
        title="Planted noise and what the split finds",
        columns=tuple(columns),
        rows=tuple(
            tuple(getattr(cell, name) for name in columns.values())
            for cell in (*findings.grid, *findings.lines)
        ),
    )


def synthetic_result(context: AnalysisContext) -> AnalysisResult:
    """Run the analysis on a dictionary."""
    config, saved = context.config, context.subject.saved
    batches = in_batches(context.rows.read(), config.n_synthetic_rows)
    rows = next(batches)["activations"].float().to(saved.dictionary.b_dec.device)
    findings = validate(
        saved, rows, seed=config.seed, train_fraction=config.train_fraction, ridge=config.ridge
    )
    return AnalysisResult(
        "Planted noise",
        numbers(findings),
        synthetic_charts(findings),
        [synthetic_table(findings)],
    )
