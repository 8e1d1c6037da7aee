"""Matryoshka: nested dictionaries, each of which must reconstruct by itself, over batch top-k.

Bussmann et al., 2025, arXiv 2503.17547. The latents are cut into nested prefixes; one selection of
the k·B largest pre-activations of the batch serves them all, and the loss is the weighted mean of
the squared errors of every prefix's reconstruction, over the data's variance. Early latents
therefore learn what is general. Saved as BatchTopK is: `jumprelu` with one threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from saelab.dictionary.architectures import error_of
from saelab.sparse import SparseCodes, TransposedPairs, decode_selected, encode_selected

from ..interface import DictionarySettings, StepOutput, TrainingBatch
from ..options import AuxiliaryOptions
from .mutual_choice import MutualChoice, MutualChoiceOptions


@dataclass(frozen=True, kw_only=True)
class MatryoshkaOptions(MutualChoiceOptions):
    """Settings of the `matryoshka` method."""

    auxiliary: AuxiliaryOptions = field(default_factory=AuxiliaryOptions)
    """The auxiliary loss that keeps latents in use."""
    prefix_shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Sizes of the nested dictionaries as shares of d_sae, rising to 1."""
    prefix_weights: tuple[float, ...] | None = None
    """Weight of each prefix's error, scaled to sum to one. None: equal weights."""

    def problems(self) -> list[str]:
        """Everything wrong with the settings by themselves."""
        problems, shares = super().problems(), self.prefix_shares
        if not shares or list(shares) != sorted(set(shares)) or shares[0] <= 0 or shares[-1] != 1:
            problems.append(f"prefix_shares is {shares}; it must rise strictly from above 0 to 1")
        weights = self.prefix_weights
        if weights is not None and (
            len(weights) != len(shares)
            or not all(0 <= weight < math.inf for weight in weights)
            or sum(weights) <= 0
        ):
            problems.append(
                f"prefix_weights is {weights}; it must hold {len(shares)} numbers that are not "
                "negative, one for each prefix, not all zero"
            )
        return problems

    def sizes(self, d_sae: int) -> list[int]:
        """Latents in each prefix."""
        return [max(1, round(share * d_sae)) for share in self.prefix_shares]

    def problems_with(self, *, d_sae: int, k: int, batch_rows: int, n_steps: int) -> list[str]:
        """A dictionary too narrow for its prefixes."""
        del k, batch_rows, n_steps
        sizes = self.sizes(d_sae)
        if len(set(sizes)) == len(sizes):
            return []
        return [f"prefixes of {sizes} latents are not nested: raise d_sae = {d_sae} or give fewer"]


class Matryoshka(MutualChoice):
    """One nested dictionary being learnt."""

    crosses_layers = False

    def __init__(self, settings: DictionarySettings, options: MatryoshkaOptions):
        super().__init__(settings, options)
        bounds = [0, *options.sizes(settings.d_sae)]
        self.bands = [high - low for low, high in pairwise(bounds)]
        weights = options.prefix_weights or (1.0,) * len(self.bands)
        self.prefix_weights = [weight / sum(weights) for weight in weights]

    def reconstruct(self, batch: TrainingBatch, selected: SparseCodes) -> StepOutput:
        """The weighted errors of every prefix, and the auxiliary loss on the last one's."""
        w, x, targets = self.weights, batch.inputs, batch.targets
        # One split each, so that the bands' gradients are put together once.
        encoders = w.W_enc.T.split(self.bands)
        biases, decoders = w.b_enc.split(self.bands), w.W_dec.split(self.bands)
        value = torch.zeros_like(selected.value)
        reconstruction, error = w.baseline(x).expand_as(targets), targets
        total, first = x.new_zeros(()), 0
        parts = zip(self.bands, encoders, biases, decoders, self.prefix_weights, strict=True)
        for band, W_enc, b_enc, W_dec, weight in parts:
            inside = (selected.latent >= first) & (selected.latent < first + band)
            part = selected.keep(inside)
            part = SparseCodes(part.row_pointer, part.latent - first, part.value, band)
            pairs = TransposedPairs.of(part)
            codes = encode_selected(x, W_enc.T, b_enc, w.input_bias, part, pairs).relu()
            value = value.masked_scatter(inside, codes)
            reconstruction = reconstruction + decode_selected(part, codes, W_dec, pairs)
            error = error_of(targets, reconstruction)
            total = total + weight * error.square().mean()
            first += band
        losses = {"reconstruction": total} | self.auxiliary.loss(w, x, error)
        return StepOutput(losses, selected.with_value(value.detach()), reconstruction)
