"""`run_core`: evaluate saved dictionaries on held-out text and write what was found.

Everything that can be wrong is checked before the first forward pass; results are written when all
numbers are there, the JSON last, so a result that exists is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.errors import ConfigError
from saelab.evaluation_result import EvaluationResult, write_evaluation_result
from saelab.language_model import LanguageModel, load_language_model
from saelab.metrics import SparsityStatistics

from .config import CoreConfig
from .losses import measure_losses
from .protocol import Protocol, check_fit, protocol_of, recorded_mean
from .report import write_report
from .result import FEATURES_FILE, build_result, write_features
from .rows import measure_rows

logger = logging.getLogger(__name__)

RESULT_FILE = "core.json"
REPORT_FILE = "core.html"
TRAINING_MEAN = "the mean of the dictionary's training activations"
EVALUATED_MEAN = "the mean of the evaluated rows"


@dataclass(frozen=True)
class Subject:
    """A dictionary to evaluate, how, and where its results go."""

    saved: SavedDictionary
    protocol: Protocol
    out: Path


def run_core(dictionary_folders: Sequence[Path], config: CoreConfig) -> list[EvaluationResult]:
    """Evaluate dictionaries; writes `core.json`, `core_features.parquet`, `core.html` for each.

    Dictionaries of the same model, hook point, text and row rule share one pass over the text.

    Args:
        dictionary_folders: saved dictionaries.
        config: settings.

    Returns:
        The results in the order of the folders.

    Raises:
        ConfigError: no or doubled folders, or a result that exists and may not be overwritten.
        ArtifactError: a folder that is no intact dictionary, or does not fit its model.
        ModelError: an unknown model or hook point.
        TextError: too little held-out text.
        ActivationError: activations that are not finite.
    """
    places = result_folders(dictionary_folders, config)
    subjects = []
    for folder, out in zip(dictionary_folders, places, strict=True):
        saved = load_dictionary(folder)
        subjects.append(Subject(saved, protocol_of(saved, config), out))
    results: dict[Path, EvaluationResult] = {}
    models: dict[tuple[str, str], LanguageModel] = {}
    groups: dict[Protocol, list[Subject]] = {}
    for subject in subjects:
        protocol = subject.protocol
        key = (protocol.model, protocol.model_dtype)
        if key not in models:
            models[key] = load_language_model(key[0], dtype=key[1], device=config.device)
        check_fit(models[key], protocol, subject.saved)
        groups.setdefault(protocol, []).append(subject)
    for protocol, group in groups.items():
        model = models[protocol.model, protocol.model_dtype]
        for subject, result in zip(group, _evaluate(model, protocol, group, config), strict=True):
            results[subject.out] = result
    return [results[subject.out] for subject in subjects]


def result_folders(dictionary_folders: Sequence[Path], config: CoreConfig) -> list[Path]:
    """Where each dictionary's results go.

    Raises:
        ConfigError: no or doubled folders, or a result that exists and may not be overwritten.
    """
    if not dictionary_folders:
        raise ConfigError("no dictionary was given: name at least one dictionary folder")
    resolved = [folder.resolve() for folder in dictionary_folders]
    if config.out is None:
        places = [folder / "evals" for folder in dictionary_folders]
    elif len(resolved) == 1:
        places = [config.out]
    else:
        places = [config.out / folder.name for folder in resolved]
    problems = []
    if len({place.resolve() for place in places}) < len(places):
        problems.append(
            f"dictionaries {[str(folder) for folder in dictionary_folders]} would write to the "
            "same "
            "folder: name each once, and leave --out away where folder names are equal"
        )
    problems += [
        f"{place / RESULT_FILE} exists already: add --overwrite to replace it"
        for place in places
        if (place / RESULT_FILE).exists() and not config.overwrite
    ]
    if problems:
        raise ConfigError(problems)
    return places


def _evaluate(
    model: LanguageModel, protocol: Protocol, group: Sequence[Subject], config: CoreConfig
) -> list[EvaluationResult]:
    dictionaries = [subject.saved for subject in group]
    for saved in dictionaries:
        saved.dictionary.to(model.device)
    recorded = [recorded_mean(saved, model.device) for saved in dictionaries]
    rows = measure_rows(model, protocol, dictionaries, config)
    if rows.n_tokens < config.n_tokens:
        logger.warning(
            "the held-out text has %d tokens of the %d asked for: all of it was evaluated",
            rows.n_tokens,
            config.n_tokens,
        )
    own_mean = rows.mean().float()
    means = [own_mean if mean is None else mean for mean in recorded]
    losses = measure_losses(model, protocol, dictionaries, means, config)
    results = []
    for index, (subject, mean) in enumerate(zip(group, recorded, strict=True)):
        source = EVALUATED_MEAN if mean is None else TRAINING_MEAN
        result = build_result(subject.saved, index, protocol, config, rows, losses, source)
        results.append(_write(subject.out, result, rows.sparsity[index]))
    return results


def _write(out: Path, result: EvaluationResult, sparsity: SparsityStatistics) -> EvaluationResult:
    # An old result stays until the new one replaces it: stopping here loses none.
    out.mkdir(parents=True, exist_ok=True)
    write_features(out / FEATURES_FILE, sparsity)
    write_report(out / REPORT_FILE, result)
    written = write_evaluation_result(out / RESULT_FILE, result)
    logger.info("wrote %s", out / RESULT_FILE)
    return written
