"""Bias adaptation, for one group of latents (BA) and for several with their own targets (GBA).

Chen et al., 2025, arXiv 2506.14002. With u = x / ‖x‖ the rows as the model has them, each divided
by its own norm, and unit rows w of W:

    z = w · (u − b_pre)     y = z + b     f = z where y > 0, else 0     û = (f ⊙ a) W + b_pre

The loss is ½ ‖û − u‖², averaged over rows, and no more: sparsity comes from the bias b alone, which
no gradient moves (see `parts.firing_bias`). Encoder and decoder share W; a starts at one and is
learnt; −b is the threshold of a JumpReLU and is not taken off what it lets pass.

Our choices, where the paper is silent or unclear: b_pre is the mean of the first batch's u and
stays there; rows of W are brought back to norm one after each step; biases start where each latent
fires at its target on the first batch, and not at zero; see also `parts.firing_bias`.

It becomes a `jumprelu` dictionary that brings each row to norm √d_in by itself, so nothing of the
run's own normalisation is folded in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import OMIT_DEFAULT, Within
from saelab.dictionary import Dictionary
from saelab.dictionary.architectures import error_of
from saelab.sparse import (
    PreActivations,
    SparseCodes,
    TransposedPairs,
    decode_selected,
    encode_selected,
    select_above,
)
from saelab.sparse.world import current_world

from ..interface import DictionarySettings, Method, Normalisation, StepOutput, TrainingBatch
from ..options import AuxiliaryOptions, CommonOptions
from ..parts.auxiliary import Auxiliary
from ..parts.firing_bias import (
    FiringBias,
    FiringRule,
    group_shares,
    group_sizes,
    target_frequencies,
    update_periods,
)
from ..parts.weights import UnitWeights, normalise_rows, remove_radial_gradient

MOST_FREQUENT = 0.5
"""Largest target frequency: biases are at most 0, so no latent fires much more often."""


@dataclass(frozen=True, kw_only=True)
class BiasAdaptationOptions(CommonOptions):
    """Settings of the `bias_adaptation` method."""

    learning_rate: Annotated[float | None, Within(0, low_open=True)] = 6e-3
    """Peak learning rate: one matrix does the work of two, and wants twice as much. None: the
    run's."""
    tied: bool = field(default=True, metadata=OMIT_DEFAULT)
    """Whether encoder and decoder share their directions, as in the paper. Untied (ours), each has
    its own, all of norm one."""
    auxiliary: AuxiliaryOptions = field(default_factory=lambda: AuxiliaryOptions(kind="none"))
    """The auxiliary loss; the paper has none."""
    groups: Annotated[int, Within(1)] = 1
    """Groups of latents, each with its own target frequency."""
    highest_frequency: Annotated[float | None, Within(0, MOST_FREQUENT, low_open=True)] = None
    """Target activation frequency, as a share of rows, of the first group. None: such that L0 is
    `budget_factor` · k where every latent fires at its target."""
    lowest_frequency: Annotated[float | None, Within(0, MOST_FREQUENT, low_open=True)] = None
    """Target of the last group; those between fall geometrically. None: the highest over
    `frequency_ratio`. Of no use with one group."""
    frequency_ratio: Annotated[float, Within(1)] = 100.0
    """Highest over lowest target, where `lowest_frequency` is None."""
    budget_factor: Annotated[float, Within(1e-6)] = 1.6
    """Mean number of active latents that the targets add up to, as a multiple of k. Targets are
    ceilings, so fewer are: with this factor about k, as measured with ten groups."""
    dead_below: Annotated[float, Within(0, 1)] = 1e-6
    """Frequency below which a latent's bias is raised; as small as this: it did not fire at all."""
    gamma_down: Annotated[float, Within(0, 1)] = 0.01
    """Step of the bias of a latent that fires too often, over its largest pre-activation."""
    gamma_up: Annotated[float, Within(0, 1)] = 0.01
    """Step of the bias of a dead latent, over the mean of its group's largest ones."""
    short_run_boost: Annotated[float, Within(1)] = 5.0
    """Largest factor on both steps in groups whose bias moves less than 500 times in the run; the
    factor is 500 over that number, so that biases can go equally far. 1: never."""
    update_every_steps: Annotated[int | None, Within(1)] = None
    """Steps between updates of the biases. None: a 500th of the run, at most 50, at least 1."""
    firings_per_update: Annotated[float, Within(0)] = 20.0
    """Firings, of a latent at its target, between updates of its group: rare groups wait longer
    than `update_every_steps`. 0: no group does."""
    start: Literal["zero", "target"] = "target"
    """Biases at the start. `zero`: the paper's, where half of the latents fire on each row.
    `target`: where each latent fires on `start_factor` times its target of the first batch."""
    start_factor: Annotated[float, Within(1e-6)] = 1.0
    """Frequency at the start over the target, for `target`."""
    b_pre: Literal["mean", "zero"] = "mean"
    """What is taken off each row of norm one: the mean of the first batch's, or nothing."""

    def problems(self) -> list[str]:
        """Everything wrong with the settings by themselves."""
        problems = super().problems() + [
            f"{name} = {value!r} needs a decoder of its own, and bias adaptation decodes with its "
            "encoder's directions (untied, from them) at norm one: leave it out, or take another "
            "method"
            for name in ("decoder", "decoder_norm")
            if (value := getattr(self, name)) != getattr(CommonOptions, name)
        ]
        highest, lowest = self.highest_frequency, self.lowest_frequency
        if highest is not None and lowest is not None and lowest > highest:
            problems.append(f"lowest_frequency = {lowest} is above highest_frequency = {highest}")
        if lowest is not None and highest is None:
            problems.append(
                f"lowest_frequency = {lowest} is given without highest_frequency: give both, or "
                "frequency_ratio alone"
            )
        return problems

    def ratio(self) -> float:
        """The highest target over the lowest."""
        if self.highest_frequency is not None and self.lowest_frequency is not None:
            return self.highest_frequency / self.lowest_frequency
        return self.frequency_ratio

    def frequencies(self, d_sae: int, k: int) -> list[float]:
        """Target frequency of each group."""
        return target_frequencies(
            d_sae,
            self.groups,
            self.ratio(),
            highest=self.highest_frequency,
            budget=self.budget_factor * k,
        )

    def periods(self, frequencies: list[float], batch_rows: int, n_steps: int) -> list[int]:
        """Steps between two updates of each group."""
        return update_periods(
            frequencies,
            every=self.update_every_steps,
            firings=self.firings_per_update,
            batch_rows=batch_rows,
            n_steps=n_steps,
        )

    def problems_with(self, *, d_sae: int, k: int, batch_rows: int, n_steps: int) -> list[str]:
        """Targets that cannot be reached, and biases that would never move."""
        if self.groups > d_sae:
            return [f"groups = {self.groups} is more than d_sae = {d_sae}: give at most {d_sae}"]
        frequencies = self.frequencies(d_sae, k)
        if frequencies[0] > MOST_FREQUENT:
            return [self._too_frequent(d_sae, k, frequencies[0])]
        periods = self.periods(frequencies, batch_rows, n_steps)
        if periods[-1] <= n_steps:
            return []
        if (self.update_every_steps or 0) > n_steps:
            return [
                f"update_every_steps = {self.update_every_steps} is longer than the run of "
                f"{n_steps} steps, so no bias would ever move: give at most {n_steps}"
            ]
        rows = n_steps * batch_rows
        firings = math.floor(100 * frequencies[-1] * rows) / 100
        return [
            f"the last group's target of {frequencies[-1]:.2g} gives {self.firings_per_update:g} "
            f"firings in {periods[-1]:,} steps and the run has {n_steps:,}, so its biases would "
            f"never move: train on at least {periods[-1] * batch_rows:,} tokens, raise its target "
            f"to at least {self.firings_per_update / rows:.2g} (lowest_frequency, "
            f"frequency_ratio), or lower firings_per_update to at most {firings:g}"
        ]

    def _too_frequent(self, d_sae: int, k: int, highest: float) -> str:
        """Why a target frequency above one half is refused, and the nearest that is not."""
        reason = "a latent fires on about half of the rows at most, since its bias is at most 0"
        wanted = self.budget_factor * k
        if wanted > MOST_FREQUENT * d_sae:
            return (
                f"budget_factor · k = {wanted:g} active latents of {d_sae} are asked for, but "
                f"{reason}: lower budget_factor to at most {MOST_FREQUENT * d_sae / k:.3g}, or k"
            )
        most = sum(
            MOST_FREQUENT * size * share
            for size, share in zip(
                group_sizes(d_sae, self.groups),
                group_shares(self.groups, self.ratio()),
                strict=True,
            )
        )
        return (
            f"the first group's target would be {highest:.3g}, but {reason}: lower "
            f"frequency_ratio, or budget_factor to at most {most / k:.3g}"
        )


@dataclass(frozen=True, kw_only=True)
class GroupBiasAdaptationOptions(BiasAdaptationOptions):
    """Settings of the `group_bias_adaptation` method."""

    groups: Annotated[int, Within(1)] = 10
    """Groups of latents, each with its own target frequency."""


class BiasAdaptation(Method):
    """One dictionary being learnt whose biases adapt to measured activation frequencies."""

    autoencodes_only = "what it takes off its input it adds to its output"

    def __init__(self, settings: DictionarySettings, options: BiasAdaptationOptions):
        super().__init__()
        d_sae, self.product_dtype = settings.d_sae, settings.product_dtype
        self.start = options.start_factor if options.start == "target" else None
        self.centre = options.b_pre == "mean"
        self.weights = UnitWeights(settings.d_in, d_sae, seed=settings.seed, tied=options.tied)
        frequencies = options.frequencies(d_sae, settings.k)
        rule = FiringRule(
            frequencies=tuple(frequencies),
            periods=tuple(options.periods(frequencies, settings.batch_rows, settings.n_steps)),
            dead_below=options.dead_below,
            gamma_down=options.gamma_down,
            gamma_up=options.gamma_up,
            short_run_boost=options.short_run_boost,
            n_steps=settings.n_steps,
        )
        self.biases = FiringBias(d_sae, rule)
        self.auxiliary = Auxiliary(d_sae, settings.k, options.auxiliary, settings.product_dtype)

    @torch.no_grad()
    def begin_from(self, source: Dictionary, normalisation: Normalisation) -> list[str]:
        """Take over directions, scales, b_pre and biases."""
        del normalisation  # rows are seen at norm one, whatever that of all is
        self.biases.bias.copy_(-self.weights.begin_from(source))
        self.centre, self.start = False, None
        return []

    def losses(self, batch: TrainingBatch) -> StepOutput:
        """Half the squared error of the rows of norm one, and the auxiliary loss where wanted."""
        raw = batch.raw()
        norms = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
        u = raw / torch.where(norms > 0, norms, 1.0)
        if batch.step == 0:
            self._start(u)
        w = self.weights
        centred = u - w.b_dec
        selected = self.select(centred)
        pairs = TransposedPairs.of(selected)
        value = encode_selected(u, w.W_enc, w.b_enc, w.b_dec, selected, pairs)
        scaled = value * w.scales.index_select(0, selected.latent)
        decoded = decode_selected(selected, scaled, w.directions, pairs)
        error = error_of(centred, decoded)
        losses = {"reconstruction": 0.5 * error.square().sum(1).mean()}
        with torch.no_grad():
            reconstruction = batch.normalised((decoded + w.b_dec) * norms)
        return StepOutput(
            losses | self.auxiliary.loss(w, u, error), selected.with_value(value), reconstruction
        )

    @torch.no_grad()
    def select(self, centred: Float[Tensor, "batch d_in"]) -> SparseCodes:
        """Every pair whose pre-activation exceeds the threshold, with that pre-activation."""
        w, thresholds = self.weights, -self.biases.bias
        codes = select_above(
            PreActivations(centred, w.W_enc, w.b_enc, self.product_dtype), thresholds
        )
        # They were found at the precision of the product, and those at the edge may lie below it.
        return codes.keep(codes.value > thresholds[codes.latent])

    @torch.no_grad()
    def _start(self, u: Float[Tensor, "batch d_in"]) -> None:
        w = self.weights
        if self.centre:
            w.b_dec.copy_(current_world().mean(u.mean(0)))
        if self.start is not None:
            self.biases.start_at_targets(u - w.b_dec, w.directions, self.start)

    def adjust_gradients(self) -> None:
        """Keep the gradient tangent to the unit sphere."""
        for rows in self.weights.of_norm_one():
            remove_radial_gradient(rows)

    @torch.no_grad()
    def after_update(self, batch: TrainingBatch, output: StepOutput) -> None:
        """Renormalise the directions, count who fired, move the biases that are due."""
        for rows in self.weights.of_norm_one():
            normalise_rows(rows)
        self.biases.count(output.codes)
        self.biases.update(batch.step + 1)
        self.auxiliary.update(output.codes, step=batch.step)

    def to_dictionary(self, normalisation: Normalisation) -> Dictionary:
        """A `jumprelu` dictionary that normalises rows by itself."""
        del normalisation
        return self.weights.to_dictionary(-self.biases.bias)

    def metrics(self) -> dict[str, float]:
        """Shares of dead latents, and what the biases have come to."""
        return self.auxiliary.metrics() | self.biases.metrics()
