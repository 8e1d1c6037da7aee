"""Analysis 4, the norm-prediction test: is a vector's squared norm linear in the activation?

A sum of sparse, nearly orthogonal features has a squared norm that is nearly linear in it, a
Gaussian's is not. The paper reads a low R² of the nonlinear error as few not-yet-learned features
in it. Random overcomplete sums of features reach 0.1 to 0.3 only (`tests/evals/dark_matter`), so a
low R² alone proves nothing; the controls beside it say what the same second moments, the
activation's norm, and the dictionary's own latents with their co-occurrence destroyed would give.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary.decomposition import ErrorProbe

from .error_sums import ErrorSums
from .part_sums import VECTORS, PartSums, combination, constant
from .regression import RIDGE, RegressionMoments
from .split import CONTEXT_TEST, CONTEXT_TRAIN

ROUNDING = 1e-12
"""Variance, as a share of that of the vectors a combination is made from, that is rounding."""


@dataclass(frozen=True, eq=False)
class NormTest:
    """R² of the squared norm of each vector, by what predicts it; None where undefined."""

    from_activation: dict[str, float | None]
    """Regressed on the activation, with a constant, held out."""
    from_self: dict[str, float | None]
    """Regressed on the vector itself, with a constant, held out."""
    gaussian: dict[str, float | None]
    """What Gaussian vectors with the same means and covariances would give, in closed form."""
    norm_only: dict[str, float | None]
    """Regressed on the activation's squared norm alone, held out."""

    def values(self) -> dict[str, float | None]:
        """Every number by its metric name."""
        kinds = {
            "norm_test": self.from_activation,
            "norm_test_self": self.from_self,
            "norm_test_gaussian": self.gaussian,
            "norm_test_norm_only": self.norm_only,
        }
        return {f"{kind}_{name}": r2 for kind, found in kinds.items() for name, r2 in found.items()}


def norm_test(sums: ErrorSums, parts: PartSums, probe: ErrorProbe, ridge: float) -> NormTest:
    """Run the test on every vector of `VECTORS`.

    Args:
        sums: of the first pass.
        parts: of the second.
        probe: that the rows were taken apart with.
        ridge: regularisation, as in `RegressionMoments.fit`.

    Raises:
        ActivationError: fewer rows than coefficients.
    """
    joint = {
        name: _joint_moments(sums, parts, cells)
        for name, cells in {"train": CONTEXT_TRAIN, "test": CONTEXT_TEST, "all": None}.items()
    }
    weight, bias = probe.weight.double(), probe.bias.double()
    d = len(bias)
    first = torch.eye(2 * d, dtype=torch.float64)[:, :d]
    train, test = (_mapped(joint[part], first, torch.zeros(d)) for part in ("train", "test"))
    scores = test.score(train.fit(ridge=ridge, what="the norm-prediction test"))
    from_activation = dict(zip(VECTORS, _finite(scores.r_squared), strict=True))
    from_self: dict[str, float | None] = {}
    gaussian: dict[str, float | None] = {}
    for place, name in enumerate(VECTORS):
        made, offset = combination(name, weight), constant(name, bias)
        own = [_mapped(joint[part], made, offset, place) for part in ("train", "test")]
        # A linear map of the activation, and a reconstruction, need not have full rank: expected.
        what = f"the squared norm of {name} from itself"
        fitted = own[0].fit(ridge=ridge, what=what, rank_level=logging.DEBUG)
        from_self[name] = own[1].score(fitted).pooled_r_squared()
        gaussian[name] = gaussian_r_squared(joint["all"], made, offset, d)
    return NormTest(from_activation, from_self, gaussian, _norm_only(parts, ridge))


def gaussian_r_squared(
    joint: RegressionMoments,
    made: Float[Tensor, "columns d_in"],
    offset: Float[Tensor, " d_in"],
    n_regressors: int,
) -> float | None:
    """R² that the squared norm of v would have on u if both were Gaussian with their moments.

    With mean μ and covariance Σ of v and S of u, C between: Cov(u, ‖v‖²) = 2 C μ and
    Var ‖v‖² = 2 tr Σ² + 4 μᵀΣμ, so R² = 4 μᵀCᵀS⁻¹Cμ / Var ‖v‖².

    Args:
        joint: moments of the columns that both are made from.
        made: v = columns · made + offset.
        offset: the constant of v.
        n_regressors: u is the first so many columns.
    """
    covariance = joint.gram / joint.n_rows
    mean = joint.mean_regressors @ made + offset
    sigma = made.T @ covariance @ made
    between = covariance[:n_regressors] @ (made @ mean)
    design = covariance[:n_regressors, :n_regressors]
    variance = 2 * sigma.square().sum() + 4 * mean @ sigma @ mean
    if not float(variance) > 0 or not float(design.trace()) > 0:
        return None
    ridge = RIDGE * design.diagonal().mean() * torch.eye(n_regressors, dtype=design.dtype)
    solved = torch.cholesky_solve(between[:, None], torch.linalg.cholesky(design + ridge))
    return float(4 * between @ solved.squeeze(1) / variance)


def _joint_moments(
    sums: ErrorSums, parts: PartSums, cells: tuple[int, ...] | None
) -> RegressionMoments:
    """Moments of [activation, error] and of the squared norms, assembled from both passes."""
    design = sums.regression.design.merged(cells)
    cross = sums.regression.cross.merged(cells)
    errors = sums.errors.merged(cells)
    squares = parts.squares.merged(cells)
    between = cross.product[:, :-1]
    return RegressionMoments(
        n_rows=int(squares.n_rows),
        mean_regressors=squares.mean_left,
        mean_targets=squares.mean_right,
        gram=torch.cat(
            [
                torch.cat([design.product, between], dim=1),
                torch.cat([between.T, errors.product], dim=1),
            ]
        ),
        cross=squares.product,
        squares=squares.square_right,
    )


def _mapped(
    joint: RegressionMoments, made: Tensor, offset: Tensor, target: int | None = None
) -> RegressionMoments:
    """Moments of columns · made + offset as regressors, of one target or of all."""
    chosen = slice(None) if target is None else slice(target, target + 1)
    gram, cross = made.T @ joint.gram @ made, made.T @ joint.cross[:, chosen]
    # A vector that does not vary is the difference of two that do, up to rounding.
    if float(gram.trace()) <= ROUNDING * float(joint.gram.trace()):
        gram, cross = torch.zeros_like(gram), torch.zeros_like(cross)
    return RegressionMoments(
        n_rows=joint.n_rows,
        mean_regressors=joint.mean_regressors @ made + offset,
        mean_targets=joint.mean_targets[chosen],
        gram=gram,
        cross=cross,
        squares=joint.squares[chosen],
    )


def _norm_only(parts: PartSums, ridge: float) -> dict[str, float | None]:
    """Held-out R² on the activation's squared norm alone."""

    def moments(cells: tuple[int, ...]) -> RegressionMoments:
        found = parts.activation_square.merged(cells)
        return RegressionMoments(
            n_rows=int(found.n_rows),
            mean_regressors=found.mean_left,
            mean_targets=found.mean_right,
            gram=found.product[:, :1],
            cross=found.product,
            squares=found.square_right,
        )

    fitted = moments(CONTEXT_TRAIN).fit(ridge=ridge, what="the norm-only control")
    scores = moments(CONTEXT_TEST).score(fitted)
    return dict(zip(VECTORS, _finite(scores.r_squared), strict=True))


def _finite(values: Tensor) -> list[float | None]:
    return [float(value) if bool(value.isfinite()) else None for value in values]
