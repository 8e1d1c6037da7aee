"""Compares dictionaries with the planted features they were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from saelab.config import to_plain
from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.model.devices import resolve_device
from saelab.progress import progress_bar
from saelab.synthetic.config import PlantedConfig
from saelab.synthetic.generator import HELD_OUT, PlantedRows, PlantedSource
from saelab.synthetic.streams import feature_frequencies
from saelab.synthetic.truth import chance_cosine, coherence, truth_of

from ..suite import Measurement
from .chart_data import chart_data
from .config import RecoveryConfig
from .consistency import alike, consistent_share, training_of
from .firing import FiringCounts, count_firing
from .matching import Matching, match
from .measures import FeatureTable, feature_table, recovery_values


@dataclass(frozen=True)
class PlantedSubject:
    """A dictionary to evaluate, what it should have found, and where its results go."""

    saved: SavedDictionary
    truth: PlantedConfig
    out: Path


@dataclass(frozen=True, eq=False)
class RecoveryFindings:
    """What the suite found out about one dictionary."""

    matching: Matching
    counts: FiringCounts
    table: FeatureTable
    chance: float
    """Mean largest cosine of a feature with as many random directions as there are latents."""
    consistent: float | None
    """Share of alive latents that other seeds found too; None where there are none."""
    n_others: int
    """Dictionaries that this one was compared with for it."""


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
                findings = _examine(subject, group, features, rows, config)
                yield _measurement(subject, largest, findings, config)
                bar.update(1)


def _measurement(
    subject: PlantedSubject, largest: float, findings: RecoveryFindings, config: RecoveryConfig
) -> Measurement:
    saved, truth, counts, table = subject.saved, subject.truth, findings.counts, findings.table
    numbers: dict[str, Any] = {
        **recovery_values(findings.matching, counts, table),
        "chance_cosine": findings.chance,
        "mcs_090": findings.consistent,
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
            "training": training_of(saved),
            "training_seed": saved.manifest.get("seed"),
            "architecture": saved.dictionary.architecture,
            "d_in": saved.dictionary.d_in,
            "d_sae": saved.dictionary.d_sae,
        },
        settings={"stream": "held_out"},
        facts={
            "threshold": f"{config.threshold:g}",
            "n_features": truth.n_features,
            "d_sae": saved.dictionary.d_sae,
            "n_rows": numbers["n_rows"],
            "n_others": findings.n_others,
        },
        data=chart_data(
            findings.matching, counts.alive(), table, config.threshold, findings.chance
        ),
        rows={"features": _features(truth, findings)},
        seed=truth.seed,
        title=f"Recovery by {saved.name}",
        subtitle=f"{saved.dictionary.architecture}, {saved.dictionary.d_sae:,} latents, trained on "
        f"{saved.model_name}: {truth.n_features:,} features planted in {truth.d_in:,} dimensions. "
        f"{config.n_rows:,} held-out rows.",
    )


def _examine(
    subject: PlantedSubject,
    group: Sequence[PlantedSubject],
    features: Float[Tensor, "n_features d_in"],
    rows: Sequence[PlantedRows],
    config: RecoveryConfig,
) -> RecoveryFindings:
    saved = subject.saved
    matching = match(features, saved.dictionary.W_dec, config.threshold)
    counts = count_firing(saved, matching, rows)
    frequency = feature_frequencies(subject.truth).to(features.device)
    others = [other.saved for other in group if other is not subject and alike(other.saved, saved)]
    return RecoveryFindings(
        matching=matching,
        counts=counts,
        table=feature_table(matching, counts, frequency, config.threshold),
        chance=chance_cosine(features, saved.dictionary.d_sae),
        consistent=consistent_share(saved, counts.alive(), others),
        n_others=len(others),
    )


def _features(truth: PlantedConfig, findings: RecoveryFindings) -> dict[str, Any]:
    """One parquet row per true feature; null where a number is undefined.

    Columns: feature, parent (of a feature that is active only where another is), frequency (by the
    law), observed_frequency (on the held-out rows), best_latent and cosine, one_to_one_latent and
    one_to_one_cosine, matched, latent_frequency, f1, mass_share, absorbed_share, n_latents (alive
    latents whose best feature it is, at the threshold).
    """
    import pyarrow

    matching, table = findings.matching, findings.table
    feature = range(truth.n_features)
    columns: dict[str, Any] = {
        "feature": pyarrow.array(feature, pyarrow.int32()),
        "parent": pyarrow.array([truth.parent_of(index) for index in feature], pyarrow.int32()),
        "frequency": _numbers(table.frequency),
        "observed_frequency": _numbers(table.observed_frequency),
        "best_latent": pyarrow.array(matching.best_latent.cpu().numpy(), pyarrow.int32()),
        "cosine": _numbers(matching.cosine),
    }
    latent, cosine = matching.assigned_latent, matching.assigned_cosine
    if latent is None or cosine is None:
        columns["one_to_one_latent"] = pyarrow.nulls(truth.n_features, pyarrow.int32())
        columns["one_to_one_cosine"] = pyarrow.nulls(truth.n_features, pyarrow.float64())
    else:
        left_over = (latent < 0).cpu().numpy()
        columns["one_to_one_latent"] = pyarrow.array(
            latent.cpu().numpy().astype(np.int32), mask=left_over
        )
        columns["one_to_one_cosine"] = pyarrow.array(cosine.cpu().numpy(), mask=left_over)
    columns |= {
        "matched": pyarrow.array(table.matched.cpu().numpy()),
        "latent_frequency": _numbers(table.latent_frequency),
        "f1": _numbers(table.f1),
        "mass_share": _numbers(table.mass_share),
        "absorbed_share": _numbers(table.absorbed_share),
        "n_latents": pyarrow.array(table.n_latents.cpu().numpy(), pyarrow.int32()),
    }
    return columns


def _numbers(values: Tensor) -> Any:
    import pyarrow

    numbers = values.double().cpu().numpy()
    return pyarrow.array(numbers, mask=~np.isfinite(numbers))
