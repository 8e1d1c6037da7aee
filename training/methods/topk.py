"""TopK: each token keeps its k largest pre-activations (Gao et al., 2024, arXiv 2406.04093).

Selection per token by pre-activation; loss ‖x − x̂‖² over the data's variance, plus an auxiliary
loss, plus, for Multi-TopK, the same loss of a reconstruction from several times k latents (their
section 5.2); decoder rows held at norm one; becomes a `topk` dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from saelab.config import Within
from saelab.dictionary import Dictionary
from saelab.dictionary.architectures import error_of
from saelab.sparse import (
    LayerPreActivations,
    SparseCodes,
    select_top_k,
    select_top_k_of_each_layer,
)

from ..interface import DictionarySettings, Normalisation, StepOutput, TrainingBatch
from ..options import CommonOptions
from ..parts.bases import AutoencoderMethod


@dataclass(frozen=True, kw_only=True)
class TopKOptions(CommonOptions):
    """Settings of the `topk` method."""

    encoder_scale: Annotated[float, Within(1e-6)] = 0.5
    """Norm of each latent's encoder weights at the start; 1 would tie them to the decoder's."""
    multi_topk_weight: Annotated[float, Within(0)] = 0.0
    """Weight of the loss of the reconstruction from `multi_topk_factor` · k latents; 0: none."""
    multi_topk_factor: Annotated[int, Within(2)] = 4
    """How many times k latents that reconstruction uses."""


class TopK(AutoencoderMethod):
    """One TopK dictionary being learnt."""

    crosses_layers = True

    def __init__(self, settings: DictionarySettings, options: TopKOptions):
        super().__init__(settings, options, options.encoder_scale)
        self.multi_topk_weight = options.multi_topk_weight
        self.multi_k = min(options.multi_topk_factor * self.k, settings.d_sae)

    def losses(self, batch: TrainingBatch) -> StepOutput:
        """Reconstruction over variance, the auxiliary loss, and Multi-TopK where asked for."""
        output = self.reconstruct(batch, self.select(batch, self.k))
        if self.multi_topk_weight > 0:
            wider = self.select(batch, self.multi_k)
            _, reconstruction = self.autoencode(batch, wider)
            error = error_of(batch.targets, reconstruction).square().mean()
            output.losses["multi_topk"] = self.multi_topk_weight * error
        return output

    @torch.no_grad()
    def select(self, batch: TrainingBatch, k: int) -> SparseCodes:
        """The k pairs of each row that this batch trains; of a cross-layer transcoder's, equally
        many of each source."""
        pre = self.pre_activations(batch.inputs)
        if isinstance(pre, LayerPreActivations):
            return select_top_k_of_each_layer(pre, k // len(pre.sizes))
        return select_top_k(pre, k)

    def to_dictionary(self, normalisation: Normalisation) -> Dictionary:
        """A `topk` dictionary with mean and scale folded in."""
        return self.weights.to_dictionary("topk", normalisation, k=self.k)
