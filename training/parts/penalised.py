"""What methods share whose sparsity comes from a weighted penalty instead of a selection of k.

The loss is ‖x − x̂‖² + λ · penalty, summed over a token and divided by d_out, on activations of unit
variance per dimension: λ is what one unit of the penalty costs in squared error.

The first batch sets thresholds (or biases) so that L0 begins at `start_l0_factor` · k. Without that
half of all pre-activations are positive, and every sparse product over them is a dense one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sparse import select_batch_top

from ..interface import DictionarySettings, Method, StepOutput, TrainingBatch
from .auxiliary import Auxiliary
from .sparsity_controller import SparsityController
from .sparsity_options import SparsityOptions
from .weights import AutoencoderWeights


class PenalisedMethod(Method):
    """A dictionary being learnt under a sparsity penalty."""

    def __init__(self, settings: DictionarySettings, options: SparsityOptions):
        super().__init__()
        self.product_dtype = settings.product_dtype
        self.start_l0 = options.start_l0_factor * settings.k
        self.encoder_scale = options.encoder_scale
        self.weights = AutoencoderWeights(
            settings.d_in,
            settings.d_sae,
            seed=settings.seed,
            encoder_scale=options.encoder_scale,
            d_out=settings.d_out,
        )
        self.controller = SparsityController(
            settings.k,
            settings.n_steps,
            fixed=options.sparsity_weight,
            start_l0_factor=options.start_l0_factor,
        )
        self.auxiliary = Auxiliary(
            settings.d_sae, settings.k, options.auxiliary, settings.product_dtype
        )

    @torch.no_grad()
    def start_threshold(self, centred: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
        """The pre-activation, without bias, above which these rows have the L0 to start with."""
        w = self.weights
        top = select_batch_top(
            centred,
            w.W_enc,
            torch.zeros_like(w.b_enc),
            max(1, round(self.start_l0 * centred.shape[0])),
            product_dtype=self.product_dtype,
        )
        return top.threshold

    @torch.no_grad()
    def start_biases(self, centred: Float[Tensor, "rows d_in"]) -> None:
        """Set b_enc to start with, and λ, for a penalty that is the sum of the codes."""
        threshold = self.start_threshold(centred)
        self.weights.b_enc.copy_(-threshold.expand_as(self.weights.b_enc))
        # (a − f)² + λ f is least at f = a − λ/2, with a the projection on the latent's direction.
        self.controller.start(2 * threshold / self.encoder_scale)

    @torch.no_grad()
    def after_update(self, batch: TrainingBatch, output: StepOutput) -> None:
        """Count who fired, and tell the controller."""
        self.auxiliary.update(output.codes, step=batch.step)
        self.controller.update(output.codes)

    def metrics(self) -> dict[str, float]:
        """The sparsity weight, and shares of latents that are dead or underused."""
        return {
            "sparsity_weight": float(self.controller.weight()),
            **self.auxiliary.metrics(),
        }
