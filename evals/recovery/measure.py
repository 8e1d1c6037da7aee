"""Compares dictionaries with the planted features they were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.config import to_plain
from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.model.devices import resolve_device
from saelab.progress import progress_bar
from saelab.stats.cosines import directions_of, nearest
from saelab.synthetic import (
    PlantedConfig,
    PlantedRows,
    PlantedSource,
    chance_cosine,
    coherence,
    feature_frequencies,
    truth_of,
)
from saelab.synthetic.generator import HELD_OUT

from ..suite import Measurement
from .firing import FiringCounts
from .matching import Matching, match
from .numbers import FeatureTable, feature_table, recovery_values
from .suite import RecoveryConfig

CONSISTENT = 0.9
ALIKE = ("method", "options", "optimizer", "n_tokens", "batch_rows", "target_l0")
"""What of the training settings runs must share to be compared; the seed is not among it."""


@dataclass(frozen=True)
class PlantedSubject:
    """A dictionary to evaluate, the features it should have learnt, and where its results go."""

    saved: SavedDictionary
    truth: PlantedConfig
    out: Path


def measure_recovery(
    folders: Sequence[Path], outs: Sequence[Path], config: RecoveryConfig
) -> Iterator[Measurement]:
    """Measure dictionaries; those of the same planted features share features and held-out rows.

    Raises:
        ConfigError: no such device.
        ArtifactError: a folder that is no intact dictionary, or of one not trained on planted
            features, or whose output is not finite.
    """
    device = resolve_device(config.device)
    groups: dict[PlantedConfig, list[PlantedSubject]] = {}
    for folder, out in zip(folders, outs, strict=True):
        saved = load_dictionary(folder)
        truth = truth_of(saved)
        groups.setdefault(truth, []).append(PlantedSubject(saved, truth, out))
    with progress_bar(len(folders), "comparing", "dictionaries") as bar:
        for truth, group in groups.items():
            source = PlantedSource(truth)
            rows = list(source.chunks(config.n_rows, stream=HELD_OUT))
            features = source.features.to(device)
            largest = coherence(features)
            for subject in group:
                subject.saved.dictionary.to(device)
            for subject in group:
                yield _measure(subject, group, features, rows, largest, config)
                bar.update(1)


def _measure(
    subject: PlantedSubject,
    group: Sequence[PlantedSubject],
    features: Float[Tensor, "n_features d_in"],
    rows: Sequence[PlantedRows],
    largest: float,
    config: RecoveryConfig,
) -> Measurement:
    saved, truth, dictionary = subject.saved, subject.truth, subject.saved.dictionary
    matching = match(features, dictionary.W_dec, config.threshold)
    counts = FiringCounts(saved, matching)
    for planted in rows:
        counts.add(planted)
    frequency = feature_frequencies(truth).to(features.device)
    table = feature_table(matching, counts, frequency, config.threshold)
    chance = chance_cosine(features, dictionary.d_sae)
    seeds = [other.saved for other in group if other is not subject and _alike(other.saved, saved)]
    numbers: dict[str, Any] = {
        **recovery_values(matching, counts, table),
        "chance_cosine": chance,
        "mcs_090": _consistent_share(saved, counts.alive(), seeds),
        "n_features": truth.n_features,
        "true_l0": float(table.observed_frequency.sum()),
        "coherence": largest,
    }
    return Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from={
            "model": saved.model_name,
            "model_hash": saved.made_from["model_hash"],
            "hook_point": saved.hook_point,
            "cache_hash": saved.made_from.get("cache_hash"),
            "planted": to_plain(truth),
            "training": _training_of(saved),
            "training_seed": saved.manifest.get("seed"),
            "architecture": dictionary.architecture,
            "d_in": dictionary.d_in,
            "d_sae": dictionary.d_sae,
        },
        settings={"stream": "held_out"},
        facts={
            "threshold": f"{config.threshold:g}",
            "n_features": truth.n_features,
            "d_sae": dictionary.d_sae,
            "n_rows": numbers["n_rows"],
            "n_others": len(seeds),
        },
        data={
            "matching": matching,
            "table": table,
            "alive": counts.alive(),
            "threshold": config.threshold,
            "chance": chance,
        },
        rows={"features": _features(truth, matching, table)},
        seed=truth.seed,
        title=f"Recovery by {saved.name}",
        subtitle=f"{dictionary.architecture}, {dictionary.d_sae:,} latents, trained on "
        f"{saved.model_name}: {truth.n_features:,} features planted in {truth.d_in:,} dimensions. "
        f"{config.n_rows:,} held-out rows.",
    )


def _training_of(saved: SavedDictionary) -> dict[str, Any]:
    """The training settings that make runs alike, as plain values."""
    recorded = saved.manifest.get("config", {})
    return {
        **{name: recorded[name] for name in ALIKE if name in recorded},
        "architecture": saved.dictionary.architecture,
        "d_sae": saved.dictionary.d_sae,
    }


def _alike(first: SavedDictionary, second: SavedDictionary) -> bool:
    """Whether two dictionaries differ in nothing but the seed of the training."""
    same_training = _training_of(first) == _training_of(second)
    return same_training and first.made_from == second.made_from


def _consistent_share(
    saved: SavedDictionary, alive: Bool[Tensor, " d_sae"], others: Sequence[SavedDictionary]
) -> float | None:
    """Share of the alive latents with MCS above 0.9; None where there is nothing to compare."""
    if not others or not bool(alive.any()):
        return None
    rows, *compared = [directions_of(each.dictionary.W_dec).rows for each in (saved, *others)]
    mcs = torch.stack([nearest(rows, other)[0] for other in compared]).mean(dim=0)
    return float((mcs[alive] > CONSISTENT).double().mean())


def _features(truth: PlantedConfig, matching: Matching, table: FeatureTable) -> dict[str, Any]:
    """One parquet row per true feature; null where a number is undefined.

    Columns: feature, parent (of a feature that is active only where another is), frequency (by the
    law), observed_frequency (on the held-out rows), best_latent and cosine, one_to_one_latent and
    one_to_one_cosine, matched, latent_frequency, f1, mass_share, absorbed_share, n_latents (alive
    latents whose best feature it is, at the threshold).
    """
    import pyarrow

    features = range(truth.n_features)
    latent, cosine = matching.assigned_latent, matching.assigned_cosine
    if latent is None or cosine is None:
        latent = torch.full_like(matching.best_latent, -1)
        cosine = torch.full_like(matching.cosine, torch.nan)
    without = (latent < 0).cpu().numpy()
    return {
        "feature": pyarrow.array(features, pyarrow.int32()),
        "parent": pyarrow.array([truth.parent_of(index) for index in features], pyarrow.int32()),
        "frequency": _column(table.frequency),
        "observed_frequency": _column(table.observed_frequency),
        "best_latent": pyarrow.array(matching.best_latent.cpu().numpy(), pyarrow.int32()),
        "cosine": _column(matching.cosine),
        "one_to_one_latent": pyarrow.array(latent.int().cpu().numpy(), mask=without),
        "one_to_one_cosine": pyarrow.array(cosine.cpu().numpy(), mask=without),
        "matched": pyarrow.array(table.matched.cpu().numpy()),
        "latent_frequency": _column(table.latent_frequency),
        "f1": _column(table.f1),
        "mass_share": _column(table.mass_share),
        "absorbed_share": _column(table.absorbed_share),
        "n_latents": pyarrow.array(table.n_latents.cpu().numpy(), pyarrow.int32()),
    }


def _column(values: Tensor) -> Any:
    import pyarrow

    numbers = values.double().cpu()
    return pyarrow.array(numbers.numpy(), mask=~numbers.isfinite().numpy())
