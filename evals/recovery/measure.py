"""Compares dictionaries with the planted features they were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from saelab.synthetic.config import PlantedConfig
from saelab.synthetic.generator import HELD_OUT, PlantedRows, PlantedSource
from saelab.synthetic.streams import feature_frequencies
from saelab.synthetic.truth import chance_cosine, coherence, truth_of

from ..suite import Measurement
from .firing import FiringCounts
from .given import feature_rows, measure_given, record_of, training_of
from .matching import Matching, match
from .numbers import FeatureTable, feature_table, recovery_values
from .suite import RecoveryConfig

CONSISTENT = 0.9


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
    if config.truth is not None:
        yield from measure_given(folders, outs, config, config.truth, device)
        return
    groups: dict[PlantedConfig, dict[Path, SavedDictionary]] = {}
    for folder, out in zip(folders, outs, strict=True):
        saved = load_dictionary(folder)
        groups.setdefault(truth_of(saved), {})[out] = saved
    with progress_bar(len(folders), "comparing", "dictionaries") as bar:
        for truth, group in groups.items():
            source = PlantedSource(truth)
            rows = list(source.chunks(config.n_rows, stream=HELD_OUT))
            features = source.features.to(device)
            largest = coherence(features)
            for saved in group.values():
                saved.dictionary.to(device)
            for out, saved in group.items():
                seeds = [each for each in group.values() if _differ_in_seed(each, saved)]
                yield _measure(saved, out, seeds, truth, features, rows, largest, config)
                bar.update(1)


def _measure(
    saved: SavedDictionary,
    out: Path,
    seeds: Sequence[SavedDictionary],
    truth: PlantedConfig,
    features: Float[Tensor, "n_features d_in"],
    rows: Sequence[PlantedRows],
    largest: float,
    config: RecoveryConfig,
) -> Measurement:
    dictionary = saved.dictionary
    matching = match(features, dictionary.W_dec, config.threshold)
    counts = FiringCounts(saved, matching)
    for planted in rows:
        counts.add(planted)
    frequency = feature_frequencies(truth).to(features.device)
    table = feature_table(matching, counts, frequency, config.threshold)
    chance = chance_cosine(features, dictionary.d_sae)
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
        out=out,
        numbers=numbers,
        made_from={**record_of(saved), "planted": to_plain(truth)},
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


def _differ_in_seed(first: SavedDictionary, second: SavedDictionary) -> bool:
    """Whether two dictionaries differ in nothing but the seed of the training."""
    same_training = training_of(first) == training_of(second)
    return first is not second and same_training and first.made_from == second.made_from


def _consistent_share(
    saved: SavedDictionary, alive: Bool[Tensor, " d_sae"], others: Sequence[SavedDictionary]
) -> float | None:
    """Share of the alive latents with MCS above 0.9; None where there is nothing to compare."""
    if not others or not bool(alive.any()):
        return None
    rows, *compared = [directions_of(each.dictionary.W_dec).rows for each in (saved, *others)]
    mcs = torch.stack([nearest(rows, columns)[0] for columns in compared]).mean(dim=0)
    return float((mcs[alive] > CONSISTENT).double().mean())


def _features(truth: PlantedConfig, matching: Matching, table: FeatureTable) -> dict[str, Tensor]:
    """One parquet row per true feature; null where a number is undefined.

    Columns: parent (of a feature that is active only where another is), and those of `feature_rows`
    and `FeatureTable`.
    """
    parents = [truth.parent_of(feature) for feature in range(truth.n_features)]
    numbered = torch.tensor([-1 if parent is None else parent for parent in parents])
    by_cosine = feature_rows(matching)
    return {"feature": by_cosine["feature"], "parent": numbered, **by_cosine, **vars(table)}
