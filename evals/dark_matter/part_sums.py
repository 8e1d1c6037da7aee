"""The second pass over the rows: every activation taken apart with the fitted probe.

Gives one line per row (norms of the parts) and the sums from which the norm-prediction test is
fitted and scored, for every kind of vector at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary.architectures import error_of
from saelab.dictionary.decomposition import Decomposition

from .cross_statistics import CrossStatistics
from .split import CONTEXT_TEST, N_CELLS

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
