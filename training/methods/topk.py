"""TopK: each token keeps its k largest pre-activations (Gao et al., 2024, arXiv 2406.04093).

Selection per token by pre-activation; loss ‖x − x̂‖² over the data's variance, plus AuxK on dead
latents; decoder rows held at norm one; becomes a `topk` dictionary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from saelab.dictionary import Dictionary
from saelab.errors import ConfigError
from saelab.sparse import (
    SparseCodes,
    autoencode,
    gather_selection,
    pre_activation_chunks,
    top_k,
)

from ..interface import DictionarySettings, Method, Normalisation, StepOutput, TrainingBatch
from ..parts.auxk import auxk_loss, select_among
from ..parts.dead_latents import DeadLatents
from ..parts.weights import AutoencoderWeights


@dataclass(frozen=True, kw_only=True)
class TopKOptions:
    """Settings of the `topk` method."""

    auxk_weight: float = 1 / 32
    """Weight of the AuxK loss; 0 turns it off."""
    k_aux: int = 64
    """Dead latents each token may use in the AuxK loss."""
    dead_after_tokens: int = 100_000
    """A latent without a positive code for this many tokens counts as dead."""
    encoder_scale: float = 0.5
    """Norm of each latent's encoder weights at the start; 1 would tie them to the decoder's."""

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.auxk_weight < math.inf:
            problems.append(f"auxk_weight is {self.auxk_weight}; it must be 0 or more, finite")
        if self.k_aux < 1:
            problems.append(f"k_aux is {self.k_aux}; it must be at least 1")
        if self.dead_after_tokens < 1:
            problems.append(f"dead_after_tokens is {self.dead_after_tokens}; it must be at least 1")
        if not 0 < self.encoder_scale < math.inf:
            problems.append(f"encoder_scale is {self.encoder_scale}; it must be positive, finite")
        if problems:
            raise ConfigError(problems)


class TopK(Method):
    """One TopK dictionary being learnt."""

    def __init__(self, settings: DictionarySettings, options: TopKOptions):
        super().__init__()
        self.k = min(settings.k, settings.d_sae)
        self.product_dtype = settings.product_dtype
        self.auxk_weight, self.k_aux = options.auxk_weight, options.k_aux
        self.weights = AutoencoderWeights(
            settings.d_in,
            settings.d_sae,
            seed=settings.seed,
            encoder_scale=options.encoder_scale,
        )
        self.dead_latents = DeadLatents(settings.d_sae, dead_after_tokens=options.dead_after_tokens)

    def losses(self, batch: TrainingBatch) -> StepOutput:
        """Reconstruction over variance, and AuxK where latents are dead."""
        x, w = batch.activations, self.weights
        selected, selected_dead = self._select(x)
        codes, reconstruction = autoencode(x, w.W_enc, w.b_enc, w.W_dec, w.b_dec, selected)
        error = x - reconstruction
        losses = {"reconstruction": error.square().mean()}
        if selected_dead is not None:
            losses["auxk"] = self.auxk_weight * auxk_loss(w, x, error, selected_dead)
        return StepOutput(losses, codes, reconstruction)

    def adjust_gradients(self) -> None:
        """Keep the decoder's gradient tangent to the unit sphere."""
        self.weights.remove_radial_gradient()

    @torch.no_grad()
    def after_update(self, batch: TrainingBatch, output: StepOutput) -> None:
        """Renormalise the decoder and count silent latents."""
        self.weights.normalise_decoder()
        self.dead_latents.update(output.codes, step=batch.step)

    def to_dictionary(self, normalisation: Normalisation) -> Dictionary:
        """A `topk` dictionary with mean and scale folded in."""
        return Dictionary("topk", **self.weights.fold(normalisation), k=self.k)

    def metrics(self) -> dict[str, float]:
        """The share of latents that count as dead."""
        return {"dead_fraction": float(self.dead_latents.dead().float().mean())}

    def _select(self, x: torch.Tensor) -> tuple[SparseCodes, SparseCodes | None]:
        w = self.weights
        dead = self.dead_latents.dead_list() if self.auxk_weight > 0 else None
        if dead is not None and dead.shape[0] == 0:
            dead = None
        with torch.no_grad():
            centred = x - w.b_dec
        live_parts, dead_parts = [], []
        for _, chunk in pre_activation_chunks(
            centred, w.W_enc, w.b_enc, product_dtype=self.product_dtype
        ):
            live_parts.append(top_k(chunk, self.k))
            if dead is not None:
                dead_parts.append(select_among(chunk, dead, self.k_aux))
        live = gather_selection(live_parts, centred, w.W_enc, w.b_enc)
        if dead is None:
            return live, None
        return live, gather_selection(dead_parts, centred, w.W_enc, w.b_enc)
