"""`run_recovery`: compare saved dictionaries with the planted features they were trained on.

Everything that can be wrong is checked before the first row is encoded; results are written when
all numbers are there, the JSON last, so a result that exists is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.formats.evaluation_result import EvaluationResult, write_evaluation_result
from saelab.model.devices import resolve_device
from saelab.progress import progress_bar
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

from ..subjects import result_folders
from .config import RecoveryConfig
from .consistency import alike, consistent_share
from .firing import count_firing
from .matching import match
from .measures import feature_table
from .report import write_report
from .result import FEATURES_FILE, Findings, build_result, write_features

logger = logging.getLogger(__name__)

RESULT_FILE = "recovery.json"
REPORT_FILE = "recovery.html"


@dataclass(frozen=True)
class PlantedSubject:
    """A dictionary to evaluate, what it should have found, and where its results go."""

    saved: SavedDictionary
    truth: PlantedConfig
    out: Path


def run_recovery(folders: Sequence[Path], config: RecoveryConfig) -> list[EvaluationResult]:
    """Evaluate dictionaries; writes `recovery.json`, `recovery_features.parquet`, `recovery.html`.

    Features and held-out rows are regenerated from each dictionary's manifest; dictionaries of the
    same planted features share them.

    Args:
        folders: saved dictionaries that were trained on planted caches.
        config: settings.

    Returns:
        The results in the order of the folders.

    Raises:
        ConfigError: no or doubled folders, a result that exists and may not be overwritten, or no
            such device.
        ArtifactError: a folder that is no intact dictionary, or of one not trained on planted
            features, or whose output is not finite.
    """
    places = result_folders(folders, config.out, RESULT_FILE, overwrite=config.overwrite)
    device = resolve_device(config.device)
    subjects = []
    for folder, out in zip(folders, places, strict=True):
        saved = load_dictionary(folder)
        subjects.append(PlantedSubject(saved, truth_of(saved), out))
    groups: dict[PlantedConfig, list[PlantedSubject]] = {}
    for subject in subjects:
        groups.setdefault(subject.truth, []).append(subject)
    results: dict[Path, EvaluationResult] = {}
    with progress_bar(len(subjects), "comparing", "dictionaries") as bar:
        for truth, group in groups.items():
            source = PlantedSource(truth)
            rows = list(source.chunks(config.n_rows, stream=HELD_OUT))
            features = source.features.to(device)
            largest = coherence(features)
            for subject in group:
                subject.saved.dictionary.to(device)
            for subject in group:
                findings = _examine(subject, group, features, rows, config)
                result = build_result(subject.saved, truth, largest, findings, config)
                results[subject.out] = _write(subject, result, findings)
                bar.update(1)
    return [results[subject.out] for subject in subjects]


def _examine(
    subject: PlantedSubject,
    group: Sequence[PlantedSubject],
    features: Float[Tensor, "n_features d_in"],
    rows: Sequence[PlantedRows],
    config: RecoveryConfig,
) -> Findings:
    saved = subject.saved
    matching = match(features, saved.dictionary.W_dec, config.threshold)
    counts = count_firing(saved, matching, rows)
    frequency = feature_frequencies(subject.truth).to(features.device)
    others = [other.saved for other in group if other is not subject and alike(other.saved, saved)]
    return Findings(
        matching=matching,
        counts=counts,
        table=feature_table(matching, counts, frequency, config.threshold),
        chance=chance_cosine(features, saved.dictionary.d_sae),
        consistent=consistent_share(saved, counts.alive(), others),
        n_others=len(others),
    )


def _write(
    subject: PlantedSubject, result: EvaluationResult, findings: Findings
) -> EvaluationResult:
    # An old result stays until the new one replaces it: stopping here loses none.
    subject.out.mkdir(parents=True, exist_ok=True)
    write_features(subject.out / FEATURES_FILE, subject.truth, findings)
    write_report(subject.out / REPORT_FILE, result)
    written = write_evaluation_result(subject.out / RESULT_FILE, result)
    logger.info("wrote %s", subject.out / RESULT_FILE)
    return written
