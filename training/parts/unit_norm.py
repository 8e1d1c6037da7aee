"""What methods with unit-norm decoder rows share: weights, auxiliary loss, and their upkeep."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary.architectures import error_of
from saelab.sparse import SparseCodes, autoencode

from ..interface import DictionarySettings, Method, StepOutput, TrainingBatch
from ..options import CommonOptions
from .auxiliary import Auxiliary
from .weights import AutoencoderWeights


class UnitNormMethod(Method):
    """A dictionary being learnt whose decoder rows are held at norm one.

    A subclass selects; what is selected is rectified and decoded, and the loss is the squared error
    over the data's variance (one, after normalisation) plus the auxiliary loss.
    """

    def __init__(self, settings: DictionarySettings, options: CommonOptions, encoder_scale: float):
        super().__init__()
        self.settings_k = settings.k
        self.product_dtype = settings.product_dtype
        self.weights = AutoencoderWeights(
            settings.d_in,
            settings.d_sae,
            seed=settings.seed,
            encoder_scale=encoder_scale,
            d_out=settings.d_out,
        )
        self.auxiliary = Auxiliary(
            settings.d_sae, settings.k, options.auxiliary, settings.product_dtype
        )

    def reconstruct(self, batch: TrainingBatch, selected: SparseCodes) -> StepOutput:
        """Losses of already selected pairs: reconstruction, and auxiliary where it is wanted."""
        w = self.weights
        codes, reconstruction = self.autoencode(batch, selected)
        error = error_of(batch.targets, reconstruction)
        losses = {"reconstruction": error.square().mean()}
        losses |= self.auxiliary.loss(w, batch.inputs, error)
        return StepOutput(losses, codes, reconstruction)

    def autoencode(
        self, batch: TrainingBatch, selected: SparseCodes
    ) -> tuple[SparseCodes, Float[Tensor, "batch d_out"]]:
        """The codes of already selected pairs and the reconstruction of the targets."""
        w = self.weights
        return autoencode(
            batch.inputs, w.W_enc, w.b_enc, w.W_dec, w.b_dec, selected, b_in=w.input_bias
        )

    def adjust_gradients(self) -> None:
        """Keep the decoder's gradient tangent to the unit sphere."""
        self.weights.remove_radial_gradient()

    @torch.no_grad()
    def after_update(self, batch: TrainingBatch, output: StepOutput) -> None:
        """Renormalise the decoder and count who fired."""
        self.weights.normalise_decoder()
        self.auxiliary.update(output.codes, step=batch.step)

    def metrics(self) -> dict[str, float]:
        """Shares of latents that are dead or underused."""
        return self.auxiliary.metrics()
