"""Least squares from streamed sums: one pass over the rows, float64, memory O(d²), any split after.

The sums of any set of cells of rows (`CrossStatistics`) give a fit or a score, so that train, test
and all rows cost one pass and no residual is kept.

The normal equations are regularised as (G + ridge · tr(G)/d · I) b = c with one Cholesky
factorisation for all targets: residual streams are badly conditioned, and the reconstruction of few
live latents is rank-deficient as a regressor (Engels, Smith and Tegmark, arXiv 2410.14670, solve
them in float32 without).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ActivationError
from saelab.stats.metrics import require_finite

logger = logging.getLogger(__name__)

RIDGE = 1e-6
"""Regularisation, in units of the mean diagonal entry of the Gram matrix."""
SMALLEST_SQUARE = 1e-24
"""Squared deviation, as a share of the squared mean, that is rounding in float64."""
SMALLEST_VARIANCE = 1e-8
"""Targets whose variance is below this share of the largest are left out of means over targets."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossSums:
    """First and second moments of some rows, float64; products are about the means."""

    n_rows: int
    """Rows behind them."""
    mean_regressors: Float[Tensor, " regressors"]
    """Mean of each regressor."""
    mean_targets: Float[Tensor, " targets"]
    """Mean of each target."""
    cross: Float[Tensor, "regressors targets"]
    """Summed products of centred regressors and targets."""
    squares: Float[Tensor, " targets"]
    """Summed squares of the centred targets."""

    def merged(self, added: CrossSums) -> CrossSums:
        """Both taken together, about the mean of both."""
        n_rows = self.n_rows + added.n_rows
        share = added.n_rows / max(n_rows, 1)
        weight = self.n_rows * share
        regressors = added.mean_regressors - self.mean_regressors
        targets = added.mean_targets - self.mean_targets
        return CrossSums(
            n_rows=n_rows,
            mean_regressors=self.mean_regressors + share * regressors,
            mean_targets=self.mean_targets + share * targets,
            cross=self.cross + added.cross + weight * torch.outer(regressors, targets),
            squares=self.squares + added.squares + weight * targets.square(),
        )


class CrossStatistics:
    """`CrossSums` of streamed rows, by the cell that each row falls into."""

    def __init__(
        self,
        n_regressors: int,
        n_targets: int,
        n_cells: int = 1,
        device: torch.device | str = "cpu",
    ):
        regressors, targets = (
            torch.zeros(n, dtype=torch.float64, device=device) for n in (n_regressors, n_targets)
        )
        empty = CrossSums(
            n_rows=0,
            mean_regressors=regressors,
            mean_targets=targets,
            cross=torch.outer(regressors, targets),
            squares=targets,
        )
        self._cells = [empty] * n_cells

    def update(
        self,
        regressors: Float[Tensor, "rows regressors"],
        targets: Float[Tensor, "rows targets"],
        cell: Int[Tensor, " rows"] | None = None,
    ) -> None:
        """Add rows of any floating dtype; `cell`: into which each falls (None: all into the first).

        Raises:
            ActivationError: a value is not finite.
        """
        if len(regressors) == 0:
            return
        x, y = (rows.to(self._cells[0].mean_targets) for rows in (regressors, targets))
        if cell is None:
            self._cells[0] = self._cells[0].merged(_sums_of(x, y))
            return
        cell = cell.to(x.device)
        for index in cell.unique().tolist():
            chosen = cell == index
            self._cells[index] = self._cells[index].merged(_sums_of(x[chosen], y[chosen]))

    def merged(self, cells: Sequence[int] | None = None) -> CrossSums:
        """The sums of some cells, or of all, taken together."""
        chosen = self._cells if cells is None else [self._cells[cell] for cell in cells]
        return functools.reduce(CrossSums.merged, chosen)


def _sums_of(x: Tensor, y: Tensor) -> CrossSums:
    mean_x, mean_y = x.mean(0), y.mean(0)
    # A mean is finite only if every value is; looking at each value costs more than the mean.
    if not bool(mean_x.sum().isfinite() & mean_y.sum().isfinite()):
        require_finite(x, "the regressors")
        require_finite(y, "the targets")
    about_x, about_y = x - mean_x, y - mean_y
    return CrossSums(
        n_rows=len(x),
        mean_regressors=mean_x,
        mean_targets=mean_y,
        cross=about_x.T @ about_y,
        squares=about_y.square().sum(0),
    )


class RegressionStatistics:
    """Everything a regression of some targets on some regressors needs, from streamed rows.

    Args:
        n_regressors: columns that predict, without the constant.
        n_targets: columns that are predicted.
        n_cells: into how many cells rows fall.
        device: of the sums.
        design: sums of the same rows' regressors with themselves, where several regressions share
            them; None: collected here.

    Example:
        >>> x = torch.randn(100, 3)
        >>> statistics = RegressionStatistics(3, 1)
        >>> statistics.update(x, x[:, :1] + 2 * x[:, 1:2] + 5)
        >>> moments = statistics.moments()
        >>> float(moments.score(moments.fit()).mean_r_squared()) > 0.999
        True
    """

    def __init__(
        self,
        n_regressors: int,
        n_targets: int,
        n_cells: int = 1,
        device: torch.device | str = "cpu",
        *,
        design: CrossStatistics | None = None,
    ):
        self._shared = design is not None
        self.design = design or CrossStatistics(n_regressors, n_regressors, n_cells, device)
        self.cross = CrossStatistics(n_regressors, n_targets, n_cells, device)

    def update(
        self,
        regressors: Float[Tensor, "rows regressors"],
        targets: Float[Tensor, "rows targets"],
        cell: Int[Tensor, " rows"] | None = None,
    ) -> None:
        """Add rows of any floating dtype; `cell` as in `CrossStatistics.update`.

        Raises:
            ActivationError: a value is not finite.
        """
        if not self._shared:
            self.design.update(regressors, regressors, cell)
        self.cross.update(regressors, targets, cell)

    def moments(self, cells: Sequence[int] | None = None) -> RegressionMoments:
        """The moments of some cells' rows, or of all.

        Raises:
            ValueError: a shared design has seen other rows.
        """
        design, cross = self.design.merged(cells), self.cross.merged(cells)
        if design.n_rows != cross.n_rows:
            raise ValueError(
                f"the shared design holds {design.n_rows} rows, the targets {cross.n_rows}"
            )
        return RegressionMoments(**vars(cross), gram=design.cross)


@dataclass(frozen=True, eq=False, kw_only=True)
class RegressionMoments(CrossSums):
    """The same with the products of the regressors, which makes a fit and its score possible."""

    gram: Float[Tensor, "regressors regressors"]
    """Summed products of the centred regressors."""

    def raw_squares(self) -> Float[Tensor, " targets"]:
        """Summed squares of the targets as they are, not about their means."""
        return self.squares + self.n_rows * self.mean_targets.square()

    def select(
        self, regressors: slice | Sequence[int], targets: slice = slice(None)
    ) -> RegressionMoments:
        """The moments of some of the regressors and targets."""
        return replace(
            self,
            mean_regressors=self.mean_regressors[regressors],
            mean_targets=self.mean_targets[targets],
            gram=self.gram[regressors][:, regressors],
            cross=self.cross[regressors][:, targets],
            squares=self.squares[targets],
        )

    def fit(
        self,
        *,
        intercept: bool = True,
        ridge: float = RIDGE,
        what: str = "the regression",
        rank_level: int = logging.WARNING,
    ) -> LinearMap:
        """The least-squares map of all targets, with one factorisation.

        Args:
            intercept: whether a constant is fitted; without it products are about zero.
            ridge: added to the diagonal, in units of its mean.
            what: names the regression in messages.
            rank_level: at which log level a design that does not have full rank is reported.

        Raises:
            ActivationError: fewer rows than coefficients.
        """
        d = len(self.mean_regressors)
        needed = d + int(intercept)
        if self.n_rows <= needed:
            raise ActivationError(
                f"{what} has {self.n_rows:,} rows to fit {needed:,} coefficients per target "
                f"({d:,} regressors{' and a constant' if intercept else ''}): give more tokens "
                f"(at least {10 * needed:,} training rows make a useful fit)"
            )
        gram, cross = self.gram, self.cross
        if not intercept:
            gram = gram + self.n_rows * torch.outer(self.mean_regressors, self.mean_regressors)
            cross = cross + self.n_rows * torch.outer(self.mean_regressors, self.mean_targets)
        level = ridge * float(gram.diagonal().mean())
        if level <= 0:
            logger.log(rank_level, "%s: no regressor varies, so the fit is the mean", what)
            weight = torch.zeros_like(cross)
        else:
            _log_rank(gram, level, what, rank_level)
            weight = _solve(gram, cross, level)
        bias = self.mean_targets - self.mean_regressors @ weight
        return LinearMap(weight, bias if intercept else torch.zeros_like(bias))

    def score(self, fitted: LinearMap) -> RegressionScores:
        """How well a map predicts these rows, from the moments alone."""
        weight = fitted.weight
        about_mean = (
            self.squares - 2 * (weight * self.cross).sum(0) + (weight * (self.gram @ weight)).sum(0)
        )
        offset = self.mean_targets - self.mean_regressors @ weight - fitted.bias
        # Equal values leave the rounding of their mean behind.
        rounding = SMALLEST_SQUARE * self.n_rows * self.mean_targets.square()
        return RegressionScores(
            squared_error=about_mean.clamp(min=0) + self.n_rows * offset.square(),
            deviation=torch.where(self.squares > rounding, self.squares, 0.0),
        )


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A fitted affine map, float64."""

    weight: Float[Tensor, "regressors targets"]
    """Coefficients."""
    bias: Float[Tensor, " targets"]
    """Constants; zero where none was fitted."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RegressionScores:
    """Squared errors of predictions and the targets' own deviations, on the evaluated rows."""

    squared_error: Float[Tensor, " targets"]
    """Summed squared error of each target."""
    deviation: Float[Tensor, " targets"]
    """Summed squared deviation of each target from its mean over the evaluated rows."""

    def of(self, targets: slice) -> RegressionScores:
        """The scores of some targets."""
        return RegressionScores(
            squared_error=self.squared_error[targets], deviation=self.deviation[targets]
        )

    @property
    def varying(self) -> Bool[Tensor, " targets"]:
        """Targets with at least `SMALLEST_VARIANCE` of the largest variance."""
        largest = float(self.deviation.max()) if len(self.deviation) else 0.0
        return self.deviation > SMALLEST_VARIANCE * largest

    @property
    def r_squared(self) -> Float[Tensor, " targets"]:
        """R² of each target; NaN where the target does not vary."""
        ratio = self.squared_error / self.deviation
        return torch.where(self.varying, 1 - ratio, torch.nan)

    def mean_r_squared(self, what: str = "the targets") -> float | None:
        """Unweighted mean of R² over the targets that vary (E9); None where none does.

        Those that do not are counted in the log: one dimension of variance zero would make it 0/0.
        """
        dropped = int((~self.varying).sum())
        if dropped:
            logger.warning(
                "%s: %d of %d dimensions vary less than %.0e of the largest and are left out of "
                "the mean R²",
                what,
                dropped,
                len(self.deviation),
                SMALLEST_VARIANCE,
            )
        values = self.r_squared[self.varying]
        return float(values.mean()) if len(values) else None

    def pooled_r_squared(self) -> float | None:
        """1 - summed squared error / summed deviation over all targets (1 - E10)."""
        below = float(self.deviation.sum())
        return 1 - float(self.squared_error.sum()) / below if below > 0 else None


def _solve(gram: Tensor, cross: Tensor, level: float) -> Tensor:
    """(gram + level · I)⁻¹ cross, by Cholesky where rounding leaves the matrix positive."""
    regular = gram + level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if not int(failed):
        return torch.cholesky_solve(cross, factor)
    # Only without a ridge to speak of, or in moments made from others by subtraction.
    values, vectors = torch.linalg.eigh(gram)
    floor = max(level, 1e-13 * float(values.abs().max()))
    return vectors @ ((vectors.T @ cross) / (values.clamp(min=0) + floor)[:, None])


def _log_rank(gram: Tensor, level: float, what: str, rank_level: int) -> None:
    """Say where the ridge decides directions that the rows do not."""
    if not logger.isEnabledFor(rank_level):
        return
    below = int((torch.linalg.eigvalsh(gram) < level).sum())
    if below:
        logger.log(
            rank_level,
            "%s: %d of %d directions of the regressors vary less than the regularisation (the "
            "design is rank-deficient or nearly so); their coefficients are shrunk towards zero",
            what,
            below,
            len(gram),
        )
