"""How active each latent is on held-out rows: what the most active latents are chosen by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.dictionary import ARCHITECTURES, Dictionary, SavedDictionary
from saelab.dictionary.architectures import normalised_rows
from saelab.errors import ActivationError
from saelab.progress import progress_bar
from saelab.sparse import PreActivations, SparseCodes
from saelab.stats.metrics import SparsityStatistics
from saelab.stats.moments import Moments

Rows = Float[Tensor, "rows d_in"]
RowSource = Callable[[], Iterator[Rows]]
"""Gives the rows of one pass, a batch at a time."""


@dataclass(frozen=True, eq=False)
class Activity:
    """What a latent did on the rows; float64, one entry per latent."""

    density: Float[Tensor, " d_sae"]
    """Fraction of the rows on which its code is positive."""
    max_activation: Float[Tensor, " d_sae"]
    """Largest code times the norm of its decoder row: in units of the activations; 0 if none."""
    z_score: Float[Tensor, " d_sae"]
    """(largest - mean) / standard deviation of its pre-activation; NaN where it does not vary."""
    n_rows: int
    """Rows seen."""

    def alive(self) -> Bool[Tensor, " d_sae"]:
        """Latents that were active on some row."""
        return self.density > 0

    def rankings(self) -> dict[str, Float[Tensor, " d_sae"]]:
        """What latents are ranked by, highest first."""
        return {
            "max_activation": self.max_activation,
            "z_score": self.z_score,
            "density": self.density,
        }


class ActivityStatistics:
    """Codes and pre-activations of one dictionary, over any number of batches."""

    def __init__(self, dictionary: Dictionary):
        self._dictionary = dictionary
        device = dictionary.W_enc.device
        self._sparsity = SparsityStatistics(dictionary.d_sae, device)
        self._moments = Moments(dictionary.d_sae, device=device)
        self._largest = torch.full((dictionary.d_sae,), -torch.inf, device=device)

    @torch.no_grad()
    def update(self, rows: Rows) -> None:
        """Add rows.

        Raises:
            ActivationError: codes that are not finite.
        """
        # As `Dictionary.encode` does, with a look at the pre-activations on the way.
        dictionary = self._dictionary
        # A bias moves mean and maximum alike, so the Z-score of `gated`, which has two, needs none.
        bias = rows.new_zeros(dictionary.d_sae)
        if dictionary.architecture != "gated":
            bias = dictionary.b_enc
        gate = ARCHITECTURES[dictionary.architecture].gate
        row_scale = dictionary.row_scale(rows)
        inputs = normalised_rows(rows, row_scale) - dictionary.input_bias
        for part, chunk in PreActivations(inputs, dictionary.W_enc, bias).chunks():
            self._moments.update(chunk)
            self._largest = torch.maximum(self._largest, chunk.amax(dim=0))
            codes = SparseCodes.from_mask(*gate(dictionary, chunk))
            if row_scale is not None:
                codes = codes.with_value(codes.value * row_scale[part][codes.pair_rows()])
            self._sparsity.update(codes)

    def activity(self) -> Activity:
        """What was found so far.

        Raises:
            ActivationError: no row was seen.
        """
        n_rows = self._sparsity.n_rows
        if n_rows == 0:
            raise ActivationError(
                "no activation row is left to rank latents by: evaluate more text or relax the "
                "token filter"
            )
        deviation = self._moments.variance().sqrt()
        spread = self._largest - self._moments.mean()
        norm = self._dictionary.W_dec.double().norm(dim=1)
        return Activity(
            density=self._sparsity.density(),
            max_activation=self._sparsity.maximum * norm,
            z_score=torch.where(deviation > 0, spread / deviation, torch.nan),
            n_rows=n_rows,
        )


def measure_activity(
    dictionaries: Sequence[SavedDictionary], source: RowSource, n_rows: int
) -> list[Activity]:
    """The activity of several dictionaries, from one pass over the rows.

    Args:
        dictionaries: on the device of the rows.
        source: the rows.
        n_rows: about how many there are, for the progress bar.

    Raises:
        ActivationError: no rows, or codes that are not finite.
    """
    statistics = [ActivityStatistics(saved.dictionary) for saved in dictionaries]
    with progress_bar(n_rows, "rank latents", "rows") as bar:
        for rows in source():
            for one in statistics:
                one.update(rows)
            bar.update(len(rows))
    return [one.activity() for one in statistics]
