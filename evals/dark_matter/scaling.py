"""Analysis 3: do larger dictionaries fail on the tokens on which smaller ones fail?

The norm of one dictionary's error is regressed on another's, token by token, over all pairs; then
on the norm of its nonlinear error as well. Read from the token files: one pass, K² sums.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cross_statistics import CrossStatistics
from .regression import RegressionMoments
from .token_file import norms_matrix

NORMS = ("error", "nonlinear_error")


@dataclass(frozen=True, eq=False)
class Scaling:
    """R² between all pairs; rows predict columns."""

    r_squared: list[list[float | None]]
    """Held-out R² of the column's |error| regressed on the row's |error| and a constant."""
    gain: list[list[float | None]]
    """Share of the residual variance removed by adding the row's |nonlinear error|; 0 where none
    is left."""

    def figure_data(self, labels: Sequence[str]) -> dict[str, Any]:
        """For "scaling_matrix" and "scaling_gain"."""
        return {"labels": list(labels), "r_squared": self.r_squared, "gain": self.gain}


def measure_scaling(token_files: Sequence[Path], ridge: float) -> Scaling:
    """Regress every dictionary's error norm on every other's.

    Args:
        token_files: of the dictionaries, of the same rows, from narrow to wide.
        ridge: regularisation, as in `RegressionMoments.fit`.

    Raises:
        ActivationError: fewer rows than coefficients.
    """
    width = len(token_files) * len(NORMS)
    statistics = CrossStatistics(width, width, 2)
    for norms, held_out in norms_matrix(token_files, NORMS):
        statistics.update(norms, norms, held_out)

    def r_squared(regressors: list[int], target: int) -> float | None:
        train, test = (_block(statistics, cell, regressors, target) for cell in (0, 1))
        what = "an error norm from another dictionary's"
        fitted = train.fit(ridge=ridge, what=what, rank_level=logging.DEBUG)
        return test.score(fitted).pooled_r_squared()

    plain: list[list[float | None]] = []
    gain: list[list[float | None]] = []
    for row in range(len(token_files)):
        error, nonlinear = len(NORMS) * row, len(NORMS) * row + 1
        plain.append([])
        gain.append([])
        for column in range(len(token_files)):
            target = len(NORMS) * column
            first, both = r_squared([error], target), r_squared([error, nonlinear], target)
            plain[-1].append(first)
            gain[-1].append(_gain(first, both))
    return Scaling(plain, gain)


def _gain(first: float | None, both: float | None) -> float | None:
    if first is None or both is None:
        return None
    # The ridge leaves about 1e-12 of a norm regressed on itself.
    return 0.0 if 1 - first < 1e-9 else (both - first) / (1 - first)


def _block(
    statistics: CrossStatistics, cell: int, regressors: list[int], target: int
) -> RegressionMoments:
    sums = statistics.merged([cell])
    chosen = torch.tensor(regressors)
    return RegressionMoments(
        n_rows=int(sums.n_rows),
        mean_regressors=sums.mean_left[chosen],
        mean_targets=sums.mean_left[target : target + 1],
        gram=sums.product[chosen][:, chosen],
        cross=sums.product[chosen, target : target + 1],
        squares=sums.product[target, target : target + 1],
    )
