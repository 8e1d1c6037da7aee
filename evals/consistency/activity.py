"""How active each latent is on held-out rows: what the most active latents are chosen by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.dictionary import ARCHITECTURES, Dictionary, SavedDictionary
from saelab.dictionary.site_rows import evaluated_rows
from saelab.errors import ActivationError
from saelab.progress import progress_bar
from saelab.sparse import PreActivations, SparseCodes
from saelab.stats.cosines import row_norms
from saelab.stats.metrics import SparsityStatistics
from saelab.stats.moments import Moments

from ..alike import is_planted
from ..subjects import by_data_spec, load_models, subjects_of
from .suite import ConsistencyConfig

FEW_ROWS = 64
"""Pre-activations held in float64 at a time."""
Rows = Float[Tensor, "rows d_in"]
Pass = tuple[list[SavedDictionary], Iterator[Rows], dict[str, Any]]
"""Dictionaries that are ranked on the same rows, these rows in batches, and what they are."""


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
        inputs = dictionary.encoder_inputs(rows)
        for part, chunk in PreActivations(inputs, dictionary.W_enc, bias).chunks():
            for some in chunk.split(FEW_ROWS):
                self._moments.update(some)
            self._largest = torch.maximum(self._largest, chunk.amax(dim=0))
            codes = SparseCodes.from_mask(*gate(dictionary, chunk))
            if row_scale is not None:
                codes = codes.with_value(codes.value * row_scale[part][codes.pair_rows()])
            self._sparsity.update(codes)

    def activity(self) -> Activity:
        """What the latents did on the rows seen so far.

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
        norm = row_norms(self._dictionary.W_dec)
        return Activity(
            density=self._sparsity.density(),
            max_activation=self._sparsity.maximum * norm,
            z_score=torch.where(deviation > 0, spread / deviation, torch.nan),
            n_rows=n_rows,
        )


def rank(
    dictionaries: Sequence[SavedDictionary], config: ConsistencyConfig, device: torch.device
) -> tuple[dict[str, Activity], dict[str, dict[str, Any]]]:
    """The activity of every dictionary on its own held-out rows.

    Returns:
        By content hash: the activity, and what the rows were.

    Raises:
        ArtifactError: a dictionary that does not fit its model or record its rows.
        ModelError: an unknown model or hook point.
        TextError: too little held-out text.
        ActivationError: activations or codes that are not finite.
    """
    planted = [saved for saved in dictionaries if is_planted(saved)]
    of_text = [saved for saved in dictionaries if not is_planted(saved)]
    activities: dict[str, Activity] = {}
    described: dict[str, dict[str, Any]] = {}
    passes = [*_text_passes(of_text, config, device), *_planted_passes(planted, config, device)]
    for members, batches, rows in passes:
        statistics = [ActivityStatistics(saved.dictionary) for saved in members]
        with progress_bar(config.n_tokens, "rank latents", "rows") as bar:
            for batch in batches:
                for each in statistics:
                    each.update(batch)
                bar.update(len(batch))
        for saved, each in zip(members, statistics, strict=True):
            activities[saved.content_hash] = each.activity()
            described[saved.content_hash] = rows
    return activities, described


def _text_passes(
    dictionaries: Sequence[SavedDictionary], config: ConsistencyConfig, device: torch.device
) -> Iterator[Pass]:
    subjects = subjects_of(dictionaries, [saved.folder for saved in dictionaries], config)
    of_text = [subject for subject in subjects if subject.spec.adopted is None]
    models = load_models(of_text, config.device)
    for spec, group in by_data_spec(subjects).items():
        model = models[spec.model_key] if spec.adopted is None else None
        for subject in group:
            subject.saved.dictionary.to(device)
        described = {
            "rows": "held-out text" if model is not None else "held-out adopted rows",
            "text": spec.text_described(),
            "context_length": spec.context_length,
            "model_dtype": spec.model_dtype,
            "norm_ceiling": spec.norm_ceiling,
        }
        batches = evaluated_rows(model, spec, config.n_tokens, config.batch_contexts, device)
        rows = (batch.inputs for batch in batches)
        yield [subject.saved for subject in group], rows, described


def _planted_passes(
    dictionaries: Sequence[SavedDictionary], config: ConsistencyConfig, device: torch.device
) -> Iterator[Pass]:
    from saelab.synthetic.config import PlantedConfig
    from saelab.synthetic.generator import HELD_OUT, PlantedSource
    from saelab.synthetic.truth import truth_of

    by_truth: dict[PlantedConfig, list[SavedDictionary]] = {}
    for saved in dictionaries:
        by_truth.setdefault(truth_of(saved), []).append(saved)
    for truth, members in by_truth.items():
        chunks = PlantedSource(truth).chunks(config.n_tokens, stream=HELD_OUT)
        rows = (chunk.rows.to(device) for chunk in chunks)
        yield members, rows, {"rows": "held-out planted rows"}
