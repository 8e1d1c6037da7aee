"""Analysis 4, the norm-prediction test: is a vector's squared norm linear in the activation?

A sum of sparse, nearly orthogonal features has a squared norm that is nearly linear in it, a
Gaussian's is not. The paper reads a low R² of the nonlinear error as few not-yet-learned features
in it. Random overcomplete sums of features reach 0.1 to 0.3 only (`tests/evals/dark_matter`), so a
low R² alone proves nothing; the controls beside it say what the same second moments, the
activation's norm, and the dictionary's own latents with their co-occurrence destroyed would give.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary.architectures import error_of
from saelab.dictionary.decomposition import Decomposition, ErrorProbe
from saelab.formats.chart import Axis, Chart, Series

from .analysis import VECTOR_LABELS, Meaning, in_words
from .first_pass import ErrorSums
from .regression import RIDGE, CrossStatistics, RegressionMoments
from .rows import CONTEXT_TEST, CONTEXT_TRAIN, N_CELLS

VECTORS: tuple[str, ...] = (
    "activation",
    "reconstruction",
    "error",
    "linear_error",
    "nonlinear_error",
    "reconstruction_plus_nonlinear",
)

"""The vectors whose squared norm the norm-prediction test predicts."""


def vectors_of(parts: Decomposition, activations: Tensor) -> dict[str, Float[Tensor, "rows d_in"]]:
    """Each of `VECTORS` by name, float64."""
    x = activations.double()
    reconstruction = parts.reconstruction.double()
    linear = parts.linear_error.double()
    error = error_of(x, reconstruction)
    nonlinear = error - linear
    return {
        "activation": x,
        "reconstruction": reconstruction,
        "error": error,
        "linear_error": linear,
        "nonlinear_error": nonlinear,
        "reconstruction_plus_nonlinear": reconstruction + nonlinear,
    }


def combination(name: str, weight: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "two_d d_in"]:
    """The matrix that makes a vector of `VECTORS`, up to a constant, from [activation, error].

    Args:
        name: one of `VECTORS`.
        weight: of the probe.
    """
    one = torch.eye(len(weight), dtype=torch.float64)
    zero = torch.zeros_like(one)
    weight = weight.double()
    upper_lower = {
        "activation": (one, zero),
        "reconstruction": (one, -one),
        "error": (zero, one),
        "linear_error": (weight, zero),
        "nonlinear_error": (-weight, one),
        "reconstruction_plus_nonlinear": (one - weight, zero),
    }
    return torch.cat(upper_lower[name])


def constant(name: str, bias: Float[Tensor, " d_in"]) -> Float[Tensor, " d_in"]:
    """The constant that `combination` leaves out."""
    share = {"linear_error": 1.0, "nonlinear_error": -1.0, "reconstruction_plus_nonlinear": -1.0}
    return share.get(name, 0.0) * bias.double()


@dataclass
class NormRatios:
    """Sums over the test rows for the share of the error's norm that each part has (E17)."""

    n_rows: int = 0
    error: float = 0.0
    linear_error: float = 0.0
    nonlinear_error: float = 0.0
    linear_ratio: float = 0.0
    nonlinear_ratio: float = 0.0

    def update(self, norms: dict[str, Tensor]) -> None:
        """Add rows by the norms of their parts; a row without error has no ratio and counts 0."""
        error = norms["error"]
        self.n_rows += len(error)
        self.error += float(error.sum())
        for name in ("linear", "nonlinear"):
            part = norms[f"{name}_error"]
            total = getattr(self, f"{name}_error") + float(part.sum())
            setattr(self, f"{name}_error", total)
            ratio = torch.where(error > 0, part / error.clamp(min=1e-300), 0.0)
            setattr(self, f"{name}_ratio", getattr(self, f"{name}_ratio") + float(ratio.sum()))


class PartSums:
    """Sums of the second pass.

    Args:
        d_in: width of the activations.
    """

    def __init__(self, d_in: int):
        self.squares = CrossStatistics(2 * d_in, len(VECTORS), N_CELLS)
        self.activation_square = CrossStatistics(1, len(VECTORS), N_CELLS)
        self.ratios = NormRatios()

    def update(
        self,
        activations: Float[Tensor, "rows d_in"],
        parts: Decomposition,
        cell: Int[Tensor, " rows"],
    ) -> dict[str, Float[Tensor, " rows"]]:
        """Add rows; returns the norm of each of `VECTORS` in each row, float64."""
        vectors = vectors_of(parts, activations)
        squares = {name: vector.square().sum(1) for name, vector in vectors.items()}
        joint = torch.cat([vectors["activation"], vectors["error"]], dim=1)
        targets = torch.stack([squares[name] for name in VECTORS], dim=1)
        self.squares.update(joint, targets, cell)
        self.activation_square.update(squares["activation"][:, None], targets, cell)
        norms = {name: square.sqrt() for name, square in squares.items()}
        test = torch.isin(cell, torch.tensor(CONTEXT_TEST))
        self.ratios.update({name: norm[test] for name, norm in norms.items()})
        return norms


VECTOR_WORDS = {
    "activation": "the activation x",
    "reconstruction": "the reconstruction Sae(x)",
    "error": "the error x - Sae(x)",
    "linear_error": "the linear error",
    "nonlinear_error": "the nonlinear error",
    "reconstruction_plus_nonlinear": "reconstruction plus nonlinear error",
}

NORM_TEST = {
    f"norm_test{kind}_{name}": Meaning("1", text.format(vector=VECTOR_WORDS[name]))
    for kind, text in {
        "": "Held-out R² of the squared norm of {vector} regressed on x.",
        "_self": "Held-out R² of the squared norm of {vector} regressed on that vector itself.",
        "_gaussian": "Control: the R² on x that the squared norm of {vector} would have if all "
        "vectors were Gaussian with the same means and covariances (closed form, all rows).",
        "_norm_only": "Control: held-out R² of the squared norm of {vector} regressed on |x|² "
        "alone.",
    }.items()
    for name in VECTORS
}
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


def norm_test_chart(values: Mapping[str, Any]) -> Chart:
    """R² of the squared norm of each kind of vector, with the controls."""
    kinds = {
        "": "from x",
        "_self": "from itself",
        "_norm_only": "from |x|²",
        "_gaussian": "Gaussian",
    }
    labels = [VECTOR_LABELS[name] for name in VECTORS]
    series = tuple(
        Series(
            name=label,
            x=list(labels),
            y=[values[f"norm_test{kind}_{name}"] for name in VECTORS],
            mark="dots",
        )
        for kind, label in kinds.items()
    )
    known: list[Any] = [value for one in series for value in one.y if value is not None]
    stated = ", ".join(
        f"{label} {in_words(values[f'norm_test_{name}'])}"
        for name, label in zip(VECTORS, labels, strict=True)
    )
    return Chart(
        name="norm_test",
        title="Norm-prediction test",
        caption="Held-out R² of the squared norm of each kind of vector regressed on the "
        "activation x (the test), on the vector itself, on |x|² alone (control), and what Gaussian "
        "vectors with the same means and covariances would give on x (control). Sums of few nearly "
        "orthogonal features reach 0.75 to 1, Gaussians 0; random overcomplete sums of features "
        "only 0.1 to 0.3, so a low value alone does not say that there are none. No value is left "
        "out; those below -1 lie beyond the edge and are in the data.",
        summary=f"Dots of R² of the squared norm from x: {stated}.",
        x=Axis(title="vector"),
        y=Axis(
            title="R² of the squared norm",
            low=max(min([0.0, *known]), -1.0) - 0.05,
            high=1.05,
        ),
        series=series,
        height=400,
        wide=True,
    )


def norm_test_violins(values: Mapping[str, Sequence[float | None]]) -> Chart:
    """The norm-prediction test over the dictionaries of a family, by vector; none is left out."""
    known = {
        VECTOR_LABELS[name]: [value for value in numbers if value is not None]
        for name, numbers in values.items()
    }
    n_dictionaries = max(len(numbers) for numbers in values.values())
    undefined = sum(value is None for numbers in values.values() for value in numbers)
    means = [
        f"{label} {sum(numbers) / len(numbers):.3f}" if numbers else f"{label} none"
        for label, numbers in known.items()
    ]
    return Chart(
        name="norm_test_violin",
        title="Norm-prediction test over the family",
        caption="Held-out R² of the squared norm of each kind of vector regressed on the "
        f"activation; one value per dictionary ({n_dictionaries}), none left out"
        + (f" but {undefined} that are undefined" if undefined else "")
        + ". Line across: mean.",
        summary=f"Violins; means: {', '.join(means)}.",
        x=Axis(title="vector"),
        y=Axis(title="R² of the squared norm from x"),
        series=tuple(
            Series(name=label, y=list(numbers), mark="violin") for label, numbers in known.items()
        ),
        height=420,
        wide=True,
    )
