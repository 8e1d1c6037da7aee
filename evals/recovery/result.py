"""From what was found to the result: metrics with definitions, figure data, a row per feature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from saelab.config import to_plain
from saelab.dictionary import SavedDictionary
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric
from saelab.formats.files import atomic_path
from saelab.synthetic import PlantedConfig

from .config import RecoveryConfig
from .consistency import training_of
from .definitions import DEFINITIONS, define_recovery
from .figure_data import figure_data
from .firing import FiringCounts
from .matching import Matching
from .measures import FeatureTable, recovery_values

SUITE = "recovery"
FEATURES_FILE = "recovery_features.parquet"


@dataclass(frozen=True, eq=False)
class Findings:
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


def build_result(
    saved: SavedDictionary,
    truth: PlantedConfig,
    coherence: float,
    findings: Findings,
    config: RecoveryConfig,
) -> EvaluationResult:
    """Everything measured about one dictionary."""
    counts, table = findings.counts, findings.table
    values: dict[str, Any] = {
        **recovery_values(findings.matching, counts, table),
        "chance_cosine": findings.chance,
        "mcs_090": findings.consistent,
        "n_features": truth.n_features,
        "true_l0": float(table.observed_frequency.sum()),
        "coherence": coherence,
    }
    facts = {
        "threshold": f"{config.threshold:g}",
        "n_features": truth.n_features,
        "d_sae": saved.dictionary.d_sae,
        "n_rows": values["n_rows"],
        "n_others": findings.n_others,
    }
    return EvaluationResult(
        suite=SUITE,
        dictionary_name=saved.name,
        dictionary_hash=saved.content_hash,
        settings={
            "n_rows": config.n_rows,
            "threshold": config.threshold,
            "stream": "held_out",
            "device": config.device,
        },
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
        metrics=tuple(
            MeasuredMetric(
                name=name,
                value=values[name],
                unit=definition.unit,
                definition=define_recovery(name, **facts),
            )
            for name, definition in DEFINITIONS.items()
        ),
        figure_data=figure_data(
            findings.matching, counts.alive(), table, config.threshold, findings.chance
        ),
        item_files={"features": FEATURES_FILE},
        seed=truth.seed,
    )


def write_features(path: Path, truth: PlantedConfig, findings: Findings) -> None:
    """One parquet row per true feature; null where a number is undefined.

    Columns: feature, parent (of a feature that is active only where another is), frequency (by the
    law), observed_frequency (on the held-out rows), best_latent and cosine, one_to_one_latent and
    one_to_one_cosine, matched, latent_frequency, f1, mass_share, absorbed_share, n_latents (alive
    latents whose best feature it is, at the threshold).
    """
    import pyarrow
    from pyarrow import parquet

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
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)


def _numbers(values: Tensor) -> Any:
    import pyarrow

    numbers = values.double().cpu().numpy()
    return pyarrow.array(numbers, mask=~np.isfinite(numbers))
