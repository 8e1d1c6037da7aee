"""How much each active feature adds to the logit of a chosen next token, to first order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary

from .reading import Reading

DEFINITION = (
    "Attribution of a feature at a token: its code × (gradient of the chosen next token's "
    "{quantity} with respect to the activation at that token) · (the feature's decoder row). To "
    "first order, it is what taking the feature away there would cost; a feature's total is the "
    "sum over tokens. Features, decoder bias, reconstruction error and left-out positions together "
    "make up gradient · activation, summed."
)


@dataclass(frozen=True, eq=False)
class Attribution:
    """Attribution of every active pair, and of what is not a feature; float64."""

    reading: Reading
    """The text; its pairs are the ones attributed."""
    pair: Float[np.ndarray, " pairs"]
    """Attribution of each pair of the reading."""
    bias: float
    """Σ gradient · (decoder bias) over counted positions."""
    error: float
    """Σ gradient · (activation − reconstruction) over counted positions."""
    left_out: float
    """Σ gradient · activation over positions that do not count."""
    value: float
    """The logit or log-probability that was differentiated."""

    def by_feature(self) -> tuple[Int[np.ndarray, " features"], Float[np.ndarray, " features"]]:
        """Active features and the sums of their attributions, by feature number."""
        latent, index = np.unique(self.reading.latent, return_inverse=True)
        return latent, np.bincount(index, self.pair, len(latent))

    def by_position(self) -> Float[np.ndarray, " seq"]:
        """Sum over features at each position."""
        return np.bincount(self.reading.position, self.pair, len(self.reading.ids))


@torch.no_grad()
def attribute(
    dictionary: Dictionary,
    reading: Reading,
    activations: Float[Tensor, "seq d_in"],
    gradients: Float[Tensor, "seq d_in"],
    value: float,
) -> Attribution:
    """Attribute a derivative to the pairs of a reading.

    Args:
        activations: at the hook point.
        gradients: of the chosen quantity with respect to them.
        value: the quantity itself.
    """
    x, g = activations.double().cpu(), gradients.double().cpu()
    scale = dictionary.row_scale(x)
    scale = torch.ones(len(x), dtype=x.dtype) if scale is None else scale
    position = torch.from_numpy(reading.position)
    rows = dictionary.W_dec.cpu()[torch.from_numpy(reading.latent)].double()
    parts = torch.from_numpy(reading.value) * scale[position]
    pair = parts * (g[position] * rows).sum(1)
    counted = torch.from_numpy(reading.counted)
    bias = float((g * dictionary.baseline(x))[counted].sum())
    whole = (g * x).sum(1)
    error = float(whole[counted].sum()) - float(pair.sum()) - bias
    return Attribution(reading, pair.numpy(), bias, error, float(whole[~counted].sum()), value)
