"""What a training method is to the loop: four answers, and nothing the loop must know it by.

1. selection and 2. losses: `losses(batch)`; 3. updates outside the gradient: `adjust_gradients`
before the optimizer's step and `after_update` behind it; 4. what it becomes: `calibrate` and
`to_dictionary`; and, the other way, `begin_from`.
Parameters and buffers are the method's whole state: the checkpoint saves exactly those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.dictionary import Dictionary
from saelab.sparse import SparseCodes


@dataclass(frozen=True, kw_only=True)
class DictionarySettings:
    """What every method is given: the shape of the dictionary and the numerics of its training."""

    d_in: int
    """Width of what is read."""
    d_sae: int
    """Number of latents."""
    k: int
    """Target mean number of active latents per token."""
    seed: int
    """Seeds the initial weights."""
    batch_rows: int
    """Tokens (rows) in a step."""
    n_steps: int
    """Steps that schedules are fractions of: those of the whole training, unless it was resumed
    to be longer; see `schedule`."""
    product_dtype: torch.dtype | None
    """Dtype of the encoder product; None means that of the weights."""
    d_out: int | None = None
    """Width of what is written elsewhere. None: a sparse autoencoder, which writes what it reads
    and has one bias for both."""
    n_layers: int | None = None
    """Layers of a cross-layer transcoder, side by side in what is read and in what is written;
    `d_sae` and `k` are of all sources together. None: every latent reads and writes all."""
    written_widths: tuple[int, ...] = ()
    """Widths of the hook points that are written, side by side; empty: there is one."""
    skip: bool = False
    """Whether an affine skip from what is read to what is written is learnt beside the latents."""


@dataclass(frozen=True)
class Normalisation:
    """The affine map between activations and what methods see: x ↦ (x − mean) · scale."""

    mean: Float[Tensor, " d"]
    """Mean of the training activations per dimension, in activation units."""
    scale: float | Float[Tensor, " d"]
    """One over the root mean square of the centred activations' entries; per dimension where
    several hook points stand side by side, each with its own."""
    written: Normalisation | None = None
    """That of what is written. None: the same, as for a sparse autoencoder."""

    @staticmethod
    def of(mean: Float[Tensor, " d"], centred_mean_squared_norm: float) -> Normalisation:
        """From the statistics an activation stream carries."""
        return Normalisation(mean, (mean.shape[0] / centred_mean_squared_norm) ** 0.5)

    @staticmethod
    def joined(parts: Sequence[Normalisation]) -> Normalisation:
        """Of several hook points side by side."""
        if len(parts) == 1:
            return parts[0]
        scales = [torch.as_tensor(p.scale).to(p.mean).expand_as(p.mean) for p in parts]
        return Normalisation(torch.cat([p.mean for p in parts]), torch.cat(scales))

    @property
    def of_targets(self) -> Normalisation:
        """That of what is written."""
        return self if self.written is None else self.written

    @property
    def code_scale(self) -> float:
        """What a code of the units of what is written is multiplied by in normalised units."""
        scale = self.of_targets.scale
        return scale if isinstance(scale, float | int) else float(scale.square().mean().sqrt())

    def apply(self, activations: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Normalise a batch of what is read."""
        return (activations - self.mean) * self.scale

    def undo(self, normalised: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Back to the units of the activations."""
        return normalised / self.scale + self.mean


@dataclass(frozen=True)
class TrainingBatch:
    """Rows of one step, normalised to zero mean and unit variance per dimension on average."""

    inputs: Float[Tensor, "batch d_in"]
    """Normalised activations of what is read."""
    targets: Float[Tensor, "batch d_out"]
    """Normalised activations of what is written; the same tensor for a sparse autoencoder."""
    gradients: Float[Tensor, "batch d_out"] | None
    """Gradients of the model's summed loss with respect to the raw, not normalised, targets."""
    step: int
    """Steps taken before this one."""
    normalisation: Normalisation | None = None
    """How both were normalised; None: they are as the model has them."""

    def raw(self) -> Float[Tensor, "batch d_in"]:
        """The inputs as the model has them."""
        undo = self.normalisation
        return self.inputs if undo is None else undo.undo(self.inputs)

    def normalised(self, raw: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Vectors in the units of the model's activations, as the batch's are."""
        return raw if self.normalisation is None else self.normalisation.apply(raw)


@dataclass(frozen=True)
class StepOutput:
    """What a method computed on one batch."""

    losses: dict[str, Float[Tensor, ""]]
    """Every term by name, already weighted; their sum is minimised."""
    codes: SparseCodes
    """The codes of the batch."""
    reconstruction: Float[Tensor, "batch d_out"]
    """Of the targets, in normalised units."""


class Method(nn.Module, ABC):
    """One dictionary being learnt."""

    needs_gradients: ClassVar[bool] = False
    """Whether batches must carry gradients."""
    needs_calibration: ClassVar[bool] = False
    """Whether `calibrate` must be called before `to_dictionary`."""
    autoencodes_only: ClassVar[str | None] = None
    """Why the method cannot write another hook point than it reads; None: it can."""
    crosses_layers: ClassVar[bool] = False
    """Whether the method trains cross-layer transcoders."""

    @abstractmethod
    def begin_from(self, source: Dictionary, normalisation: Normalisation) -> list[str]:
        """Take over a saved dictionary of this shape before the first step.

        Args:
            source: acts on activations as the model has them.
            normalisation: of the activations that this will be trained on.

        Returns:
            What of it is not taken over as it is, in words.

        Raises:
            ConfigError: it has what this method does not.
        """

    @abstractmethod
    def losses(self, batch: TrainingBatch) -> StepOutput:
        """Select the active pairs of a batch and compute every loss term on them."""

    def adjust_gradients(self) -> None:
        """Change the gradients after the backward pass and before clipping."""

    @torch.no_grad()
    def after_update(self, batch: TrainingBatch, output: StepOutput) -> None:
        """Update what the gradient does not: counters, thresholds, biases, norms."""

    def calibrate(self, rows: Float[Tensor, "rows d_in"]) -> None:
        """Fit what inference needs, such as thresholds, to normalised inputs after training.

        Raises:
            ConfigError: there are not enough rows for it.
        """

    @abstractmethod
    def to_dictionary(self, normalisation: Normalisation) -> Dictionary:
        """The dictionary this has become, acting on activations as the model has them."""

    def metrics(self) -> dict[str, float]:
        """Figures of this method worth a line in the log; may wait for the device."""
        return {}

    def inference_settings(self, normalisation: Normalisation) -> dict[str, float]:
        """What other modes of inference than the saved gate need, in units of the activations."""
        del normalisation
        return {}
