"""`run_core`: evaluate saved dictionaries on held-out text and write what was found.

Everything that can be wrong is checked before the first forward pass; results are written when all
numbers are there, the JSON last, so a result that exists is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import DataSpec, recorded_mean
from saelab.formats.evaluation_result import EvaluationResult, write_evaluation_result
from saelab.memory import keep_freed_memory
from saelab.model.language_model import LanguageModel
from saelab.stats.metrics import SparsityStatistics

from ..pages import page_if
from ..subjects import Subject, by_data_spec, load_models, result_folders, subjects_of
from .config import CoreConfig
from .losses import measure_losses
from .modes import measure_modes
from .modes_result import with_modes
from .report import write_report
from .result import FEATURES_FILE, build_result, write_features
from .rows import measure_rows

logger = logging.getLogger(__name__)

RESULT_FILE = "core.json"
REPORT_FILE = "core.html"
TRAINING_MEAN = "the mean of the dictionary's training activations"
EVALUATED_MEAN = "the mean of the evaluated rows"


def run_core(
    dictionary_folders: Sequence[Path], config: CoreConfig, *, pages: bool = True
) -> list[EvaluationResult]:
    """Evaluate dictionaries; writes `core.json`, `core_features.parquet`, `core.html` for each.

    Dictionaries of the same model, hook point, text and token filter share one pass over the text.

    Args:
        dictionary_folders: saved dictionaries.
        config: settings.
        pages: whether to write `core.html`, 5 MB each; without it, one that lies there is removed.

    Returns:
        The results in the order of the folders.

    Raises:
        ConfigError: no or doubled folders, or a result that exists and may not be overwritten.
        ArtifactError: a folder that is no intact dictionary, or does not fit its model.
        ModelError: an unknown model or hook point.
        TextError: too little held-out text.
        ActivationError: activations that are not finite.
    """
    places = result_folders(dictionary_folders, config.out, RESULT_FILE, overwrite=config.overwrite)
    dictionaries = [load_dictionary(folder) for folder in dictionary_folders]
    subjects = subjects_of(dictionaries, places, config)
    models = load_models(subjects, config.device)
    # Each pass makes and frees the same hundreds of megabytes of logits: a fifth of its time.
    keep_freed_memory()
    results: dict[Path, EvaluationResult] = {}
    for spec, group in by_data_spec(subjects).items():
        model = models[spec.model, spec.model_dtype]
        found = _evaluate(model, spec, group, config, pages=pages)
        for subject, result in zip(group, found, strict=True):
            results[subject.out] = result
    return [results[subject.out] for subject in subjects]


def _evaluate(
    model: LanguageModel,
    spec: DataSpec,
    group: Sequence[Subject],
    config: CoreConfig,
    *,
    pages: bool,
) -> list[EvaluationResult]:
    dictionaries = [subject.saved for subject in group]
    for saved in dictionaries:
        saved.dictionary.to(model.device)
    recorded = [recorded_mean(saved, model.device) for saved in dictionaries]
    rows = measure_rows(model, spec, dictionaries, config)
    if rows.n_tokens < config.n_tokens:
        logger.warning(
            "the held-out text has %d tokens of the %d asked for: all of it was evaluated",
            rows.n_tokens,
            config.n_tokens,
        )
    own_mean = rows.mean().float()
    means = [own_mean if mean is None else mean for mean in recorded]
    losses = measure_losses(model, spec, dictionaries, means, config)
    modes = measure_modes(model, spec, dictionaries, losses, config)
    results = []
    for index, (subject, mean) in enumerate(zip(group, recorded, strict=True)):
        source = EVALUATED_MEAN if mean is None else TRAINING_MEAN
        result = build_result(subject.saved, index, spec, config, rows, losses, source)
        if index in modes:
            result = with_modes(result, modes[index], losses, index)
        results.append(_write(subject.out, result, rows.sparsity[index], page=pages))
    return results


def _write(
    out: Path, result: EvaluationResult, sparsity: SparsityStatistics, *, page: bool
) -> EvaluationResult:
    # An old result stays until the new one replaces it: stopping here loses none.
    out.mkdir(parents=True, exist_ok=True)
    write_features(out / FEATURES_FILE, sparsity)
    page_if(page, out / REPORT_FILE, lambda path: write_report(path, result))
    written = write_evaluation_result(out / RESULT_FILE, result)
    logger.info("wrote %s", out / RESULT_FILE)
    return written
