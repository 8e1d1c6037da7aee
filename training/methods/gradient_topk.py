"""Gradient TopK (g-SAE): the model's gradient helps to choose which latents a token keeps.

Olmo et al., 2024, arXiv 2411.10397. With z the pre-activations and g the gradient of the model's
loss with respect to the activation, each token keeps the k largest z · (1 + β |g · W_dec|); what is
decoded is z itself. Only selection sees the gradient, and only the order of positive z changes.
The paper's equation 5 read literally decodes the score instead, for which there is a switch.
β = 0 is TopK. Losses, decoder norms and the saved `topk` architecture are TopK's too, so plain
top-k inference needs no gradient; see `saelab.dictionary.modes` for the other two modes.

Our choices: g is divided by its root mean square over all entries seen so far, so that |g · W_dec|
is about one; β rises linearly over the first part of training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import OMIT_DEFAULT, Within
from saelab.errors import ActivationError
from saelab.sparse import (
    SparseCodes,
    TransposedPairs,
    decode_selected,
    encode_selected,
    select_batch_top,
    select_boosted_top_k,
)
from saelab.sparse.kernels import pair_products
from saelab.sparse.world import current_world

from ..interface import DictionarySettings, Normalisation, StepOutput, TrainingBatch
from .topk import TopK, TopKOptions

NEVER = -1.0
"""Threshold of a dictionary that was never calibrated."""
WATCH_EVERY_STEPS = 16
"""Steps between counts of the selections that the gradient changes; each costs one more product."""


@dataclass(frozen=True, kw_only=True)
class GradientTopKOptions(TopKOptions):
    """Settings of the `gradient_topk` method."""

    beta: Annotated[float, Within(0)] = 1.0
    """Weight of the attribution in the score, for gradients of root mean square one."""
    beta_warmup_fraction: Annotated[float, Within(0, 1)] = 0.1
    """Share of the steps over which β rises linearly from zero."""
    gradient_scale: Literal["all", "token"] = "all"
    """What gradients are divided by: the root mean square over all tokens, or of each token."""
    decode_boosted: bool = field(default=False, metadata=OMIT_DEFAULT)
    """Decode the score and not z, as equation 5 has it read literally: what is decoded then depends
    on labels, which plain inference lacks."""
    shuffle_gradients: bool = False
    """Give each token another token's gradient: the control for noise in the selection."""


class GradientTopK(TopK):
    """One dictionary being learnt with the gradient's help."""

    crosses_layers = False
    needs_gradients = True
    needs_calibration = True

    squared_sum: Float[Tensor, ""]
    entries: Float[Tensor, ""]
    changed_share: Float[Tensor, ""]
    median_boost: Float[Tensor, ""]
    threshold: Float[Tensor, ""]

    def __init__(self, settings: DictionarySettings, options: GradientTopKOptions):
        super().__init__(settings, options)
        self.beta, self.shuffle = options.beta, options.shuffle_gradients
        self.decode_boosted = options.decode_boosted
        self.per_token = options.gradient_scale == "token"
        self.warmup_steps = max(1.0, options.beta_warmup_fraction * settings.n_steps)
        # Exact in float64 to far beyond any run's number of entries.
        for name in ("squared_sum", "entries"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        for name in ("changed_share", "median_boost"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("threshold", torch.tensor(NEVER))

    def losses(self, batch: TrainingBatch) -> StepOutput:
        """TopK's losses on the pairs that the score chose.

        Raises:
            ActivationError: the batch carries no gradients.
        """
        if batch.gradients is None:
            raise ActivationError(
                "gradient_topk was given activations without gradients: make the cache with "
                "`saelab cache OUT --gradients`"
            )
        with torch.no_grad():
            world = current_world()
            self.squared_sum += world.sum(batch.gradients.double().square().sum())
            self.entries += batch.gradients.numel() * world.size
        return super().losses(batch)

    @torch.no_grad()
    def select(self, batch: TrainingBatch, k: int) -> SparseCodes:
        """The k pairs of each row with the largest boosted pre-activation."""
        if self._beta(batch) == 0:
            return super().select(batch, k)
        pre, boost = self.pre_activations(batch.inputs), self._beta(batch) * self._scaled(batch)
        chosen = select_boosted_top_k(pre, k, boost, self.weights.W_dec)
        if batch.step % WATCH_EVERY_STEPS == 0 and k == self.k:
            self._watch(batch, boost, chosen)
        return chosen

    def autoencode(
        self, batch: TrainingBatch, selected: SparseCodes
    ) -> tuple[SparseCodes, Float[Tensor, "batch d_out"]]:
        """TopK's codes and reconstruction; of the scores where those are decoded."""
        if not self.decode_boosted:
            return super().autoencode(batch, selected)
        w, pairs = self.weights, TransposedPairs.of(selected)
        value = encode_selected(batch.inputs, w.W_enc, w.b_enc, w.input_bias, selected, pairs)
        with torch.no_grad():
            boost = self._beta(batch) * self._scaled(batch)
            gain = 1 + pair_products(selected, boost, w.W_dec).abs()
        boosted = value.relu() * gain
        return (
            selected.with_value(boosted),
            decode_selected(selected, boosted, w.W_dec, pairs) + w.baseline(batch.inputs),
        )

    def _beta(self, batch: TrainingBatch) -> float:
        return self.beta * min(1.0, batch.step / self.warmup_steps)

    def _scaled(self, batch: TrainingBatch) -> Float[Tensor, "batch d_out"]:
        """Gradients of root mean square one, of other tokens where they are shuffled."""
        gradients = batch.gradients
        assert gradients is not None
        if self.per_token:
            gradients = gradients / gradients.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
        else:
            gradients = gradients / self.rms().clamp_min(1e-30).to(gradients.dtype)
        if self.shuffle:
            # Rows of a batch come in random order, so the neighbour's is a random token's.
            gradients = gradients.roll(1, 0)
        return gradients

    def rms(self) -> Float[Tensor, ""]:
        """Root mean square of the raw gradients' entries so far, nats per activation unit."""
        return (self.squared_sum / self.entries.clamp_min(1)).sqrt()

    def _watch(self, batch: TrainingBatch, boost: Tensor, chosen: SparseCodes) -> None:
        """Measure how much of the selection is due to the gradient, and how strong it is."""
        plain = super().select(batch, self.k)
        with_gradient, without = (c.pair_rows() * c.d_sae + c.latent for c in (chosen, plain))
        changed = (~torch.isin(with_gradient, without)).float().mean()
        self.changed_share.copy_(current_world().mean(changed))
        attribution = pair_products(chosen, boost, self.weights.W_dec)
        self.median_boost.copy_(torch.cat(current_world().gather(attribution)).abs().median())

    @torch.no_grad()
    def calibrate(self, rows: Float[Tensor, "rows d_in"]) -> None:
        """Fit the one threshold at which the mean L0 of these rows is k."""
        top = select_batch_top(self.pre_activations(rows), self.k * rows.shape[0])
        self.threshold.copy_(top.threshold)

    def metrics(self) -> dict[str, float]:
        """TopK's, the scale of the gradients and what they changed."""
        return super().metrics() | {
            "gradient_rms": float(self.rms()),
            "selection_changed_by_gradient": float(self.changed_share),
            "median_boost": float(self.median_boost),
        }

    def inference_settings(self, normalisation: Normalisation) -> dict[str, float]:
        """What gradient-assisted and threshold inference need, in units of the activations."""
        return {
            "beta": self.beta,
            "gradient_rms": float(self.rms()),
            "gradient_scale_per_token": float(self.per_token),
            "decode_boosted": float(self.decode_boosted),
            "threshold": float(self.threshold) / normalisation.code_scale,
        }
