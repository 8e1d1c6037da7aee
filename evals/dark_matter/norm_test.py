"""The norm-prediction test: is a vector's squared norm linear in the activation?

A sum of sparse, nearly orthogonal features has a squared norm that is nearly linear in it, a
Gaussian's is not. The paper reads a low R² of the nonlinear error as few not-yet-learned features
in it. Random overcomplete sums of features reach 0.1 to 0.3 only (`tests/evals/dark_matter`), so a
low R² alone proves nothing; the controls beside it say what the same second moments, the
activation's norm, and the dictionary's own latents with their co-occurrence destroyed would give.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary.architectures import error_of
from saelab.dictionary.decomposition import Decomposition, ErrorProbe
from saelab.formats.chart import Axis, Chart, Series

from .analysis import VECTOR_LABELS, Values
from .linear_error import Cells, ErrorSums
from .regression import RIDGE, CrossStatistics, RegressionMoments, RegressionStatistics
from .rows import CONTEXT_TEST, CONTEXT_TRAIN, N_CELLS, RowBatch

MIXTURES = {
    "activation": (1, 0, 0),
    "reconstruction": (1, -1, 0),
    "error": (0, 1, 0),
    "linear_error": (0, 0, 1),
    "nonlinear_error": (0, 1, -1),
    "reconstruction_plus_nonlinear": (1, 0, -1),
}
"""Vectors whose squared norm is predicted: their shares of activation, error and linear error."""
VECTORS = tuple(MIXTURES)
ROWS_AT_A_TIME = 1024
"""Rows that are held in float64 in every form at once."""


def vectors_of(
    parts: Decomposition, activations: Tensor
) -> Iterator[tuple[str, Float[Tensor, "rows d_in"]]]:
    """Each of `VECTORS` with its name, float64, where the activations are, one after the other."""
    x = activations.double()
    sources = (x, error_of(x, parts.reconstruction.to(x)), parts.linear_error.to(x))
    for name, mixture in MIXTURES.items():
        shares = zip(mixture, sources, strict=True)
        yield name, functools.reduce(torch.add, [share * part for share, part in shares if share])


def combination(
    name: str, probe: ErrorProbe
) -> tuple[Float[Tensor, "two_d d_in"], Float[Tensor, " d_in"]]:
    """The matrix and the constant that make a vector of `VECTORS` from [activation, error]."""
    activation, error, linear = MIXTURES[name]
    weight, bias = probe.weight.double(), probe.bias.double()
    identity = torch.eye(len(bias)).to(weight)
    return torch.cat([activation * identity + linear * weight, error * identity]), linear * bias


class PartSums:
    """Sums of the second pass."""

    def __init__(self, d_in: int, device: torch.device | str = "cpu"):
        self.squares = CrossStatistics(2 * d_in, len(VECTORS), N_CELLS, device)
        """Of [activation, error] with the squared norm of each of `VECTORS`."""
        self.from_square = RegressionStatistics(1, len(VECTORS), N_CELLS, device)
        """The squared norms on the activation's alone."""
        # Of the error and its parts on the test rows: norms, and their ratios to the error's.
        self._norms, self._ratios = torch.zeros(2, 3, dtype=torch.float64, device=device)
        self._n_test_rows = 0

    def update(self, batch: RowBatch, parts: Decomposition) -> dict[str, Float[Tensor, " rows"]]:
        """Add rows; returns the norm of each of `VECTORS` in each row, float64."""
        rows = (batch.activations, batch.cell, *vars(parts).values())
        blocks = zip(*(column.split(ROWS_AT_A_TIME) for column in rows), strict=True)
        norms = [self._add(x, cell, Decomposition(*vectors)) for x, cell, *vectors in blocks]
        return {name: torch.cat([of_block[name] for of_block in norms]) for name in VECTORS}

    def _add(self, x: Tensor, cell: Tensor, parts: Decomposition) -> dict[str, Tensor]:
        squares = {name: vector.square().sum(1) for name, vector in vectors_of(parts, x)}
        x = x.double()
        joint = torch.cat([x, error_of(x, parts.reconstruction.to(x))], dim=1)
        targets = torch.stack([squares[name] for name in VECTORS], dim=1)
        self.squares.update(joint, targets, cell)
        self.from_square.update(squares["activation"][:, None], targets, cell)
        norms = {name: square.sqrt() for name, square in squares.items()}
        test = torch.isin(cell, cell.new_tensor(CONTEXT_TEST))
        of_error = torch.stack(
            [norms[name][test] for name in ("error", "linear_error", "nonlinear_error")]
        )
        self._norms += of_error.sum(1)
        # A row without error has no ratio and counts 0.
        ratios = of_error / of_error[0].clamp(min=1e-300)
        self._ratios += torch.where(of_error[0] > 0, ratios, 0.0).sum(1)
        self._n_test_rows += int(test.sum())
        return norms

    def values(self) -> Values:
        """Shares of the error's norm (E17, both ways of averaging) and recovery by R² (E15)."""
        means = self.squares.merged(CONTEXT_TEST).mean_targets.tolist()
        square = dict(zip(VECTORS, means, strict=True))
        error, *norms = self._norms.tolist()
        values: Values = {}
        for part, norm, ratio in zip(("linear", "nonlinear"), norms, self._ratios[1:], strict=True):
            values[f"{part}_norm_share"] = norm / error if error > 0 else None
            values[f"{part}_norm_ratio_mean"] = float(ratio) / max(self._n_test_rows, 1)
        # What is left of the error once the nonlinear error is added is the linear error.
        left = square["linear_error"] / square["error"] if square["error"] > 0 else None
        values["recovered_r_squared_nonlinear"] = None if left is None else 1 - left
        return values


_VECTOR_WORDS = {
    "activation": "the activation x",
    "reconstruction": "the reconstruction Sae(x)",
    "error": "the error x - Sae(x)",
    "linear_error": "the linear error",
    "nonlinear_error": "the nonlinear error",
    "reconstruction_plus_nonlinear": "reconstruction plus nonlinear error",
}
NORM_TEST: dict[str, str] = {
    f"norm_test{kind}_{name}": text.format(vector=words)
    for kind, text in {
        "": "Held-out R² of the squared norm of {vector} regressed on x.",
        "_self": "Held-out R² of the squared norm of {vector} regressed on that vector itself.",
        "_gaussian": "Control: the R² on x that the squared norm of {vector} would have if all "
        "vectors were Gaussian with the same means and covariances (closed form, all rows).",
        "_norm_only": "Control: held-out R² of the squared norm of {vector} regressed on |x|² "
        "alone.",
    }.items()
    for name, words in _VECTOR_WORDS.items()
}
"""Number -> how it is computed."""
ROUNDING = 1e-12
"""Variance, as a share of that of the vectors a combination is made from, that is rounding."""


def norm_test(sums: ErrorSums, parts: PartSums, probe: ErrorProbe, ridge: float) -> Values:
    """Run the test on every vector of `VECTORS`, from the sums of both passes.

    Returns:
        R² by the names of `NORM_TEST`; None where undefined.

    Raises:
        ActivationError: fewer rows than coefficients.
    """
    control = parts.from_square.moments(CONTEXT_TRAIN)
    norm_only = control.fit(ridge=ridge, what="the norm-only control")
    # One after the other: the moments of [activation, error] are four times those of either.
    joint = _joint_moments(sums, parts, CONTEXT_TRAIN)
    fitted = _mapped(joint, "activation", probe).fit(ridge=ridge, what="the norm-prediction test")
    # A linear map of the activation, and a reconstruction, need not have full rank: expected.
    own_fits = {
        name: _mapped_to_itself(joint, name, probe).fit(
            ridge=ridge, what=f"the squared norm of {name} from itself", rank_level=logging.DEBUG
        )
        for name in VECTORS
    }
    del joint
    joint = _joint_moments(sums, parts, CONTEXT_TEST)
    values: Values = {}
    for kind, scores in {
        "": _mapped(joint, "activation", probe).score(fitted),
        "_norm_only": parts.from_square.moments(CONTEXT_TEST).score(norm_only),
    }.items():
        for name, r2 in zip(VECTORS, scores.r_squared.tolist(), strict=True):
            values[f"norm_test{kind}_{name}"] = r2 if math.isfinite(r2) else None
    for name, fit in own_fits.items():
        scores_of_itself = _mapped_to_itself(joint, name, probe).score(fit)
        values[f"norm_test_self_{name}"] = scores_of_itself.pooled_r_squared()
    del joint
    joint = _joint_moments(sums, parts, None)
    for name in VECTORS:
        made, offset = combination(name, probe)
        gaussian = gaussian_r_squared(joint, made, offset, len(offset))
        values[f"norm_test_gaussian_{name}"] = gaussian
    return values


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
    ridge = RIDGE * design.diagonal().mean() * torch.eye(n_regressors).to(design)
    solved = torch.cholesky_solve(between[:, None], torch.linalg.cholesky(design + ridge))
    return float(4 * between @ solved.squeeze(1) / variance)


def _joint_moments(sums: ErrorSums, parts: PartSums, cells: Cells) -> RegressionMoments:
    """Moments of [activation, error] and of the squared norms, assembled from both passes."""
    design = sums.regression.design.merged(cells).cross
    between = sums.regression.cross.merged(cells).cross[:, :-1]
    errors = sums.errors.merged(cells).cross
    gram = torch.cat([torch.cat([design, between], 1), torch.cat([between.T, errors], 1)])
    return RegressionMoments(**vars(parts.squares.merged(cells)), gram=gram)


def _mapped_to_itself(joint: RegressionMoments, name: str, probe: ErrorProbe) -> RegressionMoments:
    """The moments of a vector of `VECTORS` with its own squared norm."""
    index = VECTORS.index(name)
    return _mapped(joint.select(slice(None), slice(index, index + 1)), name, probe)


def _mapped(joint: RegressionMoments, name: str, probe: ErrorProbe) -> RegressionMoments:
    """The moments with a vector of `VECTORS` as regressors."""
    made, offset = combination(name, probe)
    gram, cross = made.T @ joint.gram @ made, made.T @ joint.cross
    # A vector that does not vary is the difference of two that do, up to rounding.
    if float(gram.trace()) <= ROUNDING * float(joint.gram.trace()):
        gram, cross = torch.zeros_like(gram), torch.zeros_like(cross)
    mean = joint.mean_regressors @ made + offset
    return replace(joint, mean_regressors=mean, gram=gram, cross=cross)


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
    known: list[Any] = [value for dots in series for value in dots.y if value is not None]
    return Chart(
        name="norm_test",
        title="Norm-prediction test",
        caption="Held-out R² of the squared norm of each kind of vector regressed on the "
        "activation x (the test), on the vector itself, on |x|² alone (control), and what Gaussian "
        "vectors with the same means and covariances would give on x (control). Sums of few nearly "
        "orthogonal features reach 0.75 to 1, Gaussians 0; random overcomplete sums of features "
        "only 0.1 to 0.3, so a low value alone does not say that there are none. No value is left "
        "out; those below -1 lie beyond the edge and are in the data.",
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
    return Chart(
        name="norm_test_violin",
        title="Norm-prediction test over the family",
        caption="Held-out R² of the squared norm of each kind of vector regressed on the "
        f"activation; one value per dictionary ({n_dictionaries}), none left out"
        + (f" but {undefined} that are undefined" if undefined else "")
        + ". Line across: mean.",
        x=Axis(title="vector"),
        y=Axis(title="R² of the squared norm from x"),
        series=tuple(
            Series(name=label, y=list(numbers), mark="violin") for label, numbers in known.items()
        ),
        height=420,
        wide=True,
    )
