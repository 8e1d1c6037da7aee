"""`run_dark_matter`: take the errors of saved dictionaries apart and write what was found.

Everything that can be wrong is checked before the first row is read. Each dictionary's result is
written as soon as its numbers are there, the JSON last; the family's report follows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.decomposition import save_probe
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult, write_evaluation_result
from saelab.memory import keep_freed_memory
from saelab.model.devices import resolve_device
from saelab.model.language_model import LanguageModel

from ..subjects import Subject, load_models, result_folders, subjects_of
from .cache_rows import rows_of_cache
from .config import DarkMatterConfig
from .extras import Context, check_extras, extra_findings
from .family import JSON_FILE as FAMILY_JSON
from .family import PAGE_FILE as FAMILY_PAGE
from .family import family_of, write_family
from .measure import Measured, measure, own_encoder, pursuit_encoder
from .report import write_family_report, write_report
from .result import (
    PAGE_FILE,
    PROBE_FILE,
    PURSUIT_TOKENS_FILE,
    RESULT_FILE,
    TOKENS_FILE,
    build_result,
    settings_of,
)
from .row_source import Rows
from .spill import temporary_folder
from .text_rows import rows_of_text

logger = logging.getLogger(__name__)


@dataclass
class SuiteOutcome:
    """What a run of the suite leaves."""

    results: list[EvaluationResult] = field(default_factory=list)
    """Of the dictionaries, in the order given."""
    reports: list[Path] = field(default_factory=list)
    """Pages, the family's first where there is one."""
    notes: list[str] = field(default_factory=list)
    """What could not be done, in sentences."""


def run_dark_matter(folders: Sequence[Path], config: DarkMatterConfig) -> SuiteOutcome:
    """Evaluate dictionaries of one hook point.

    Args:
        folders: saved dictionaries.
        config: settings.

    Raises:
        ConfigError: no or doubled folders, dictionaries of different hook points or rows, or a
            result that exists and may not be overwritten.
        ArtifactError: a folder or cache that is not intact, or does not fit its model.
        ActivationError: too few rows, or values that are not finite.
        ModelError: an unknown model or hook point.
        TextError: too little held-out text.
    """
    places = result_folders(folders, config.out, RESULT_FILE, overwrite=config.overwrite)
    family_out = config.out if config.out is not None else places[0]
    wants_family = config.wants("family") and len(folders) > 1
    if wants_family and (family_out / FAMILY_JSON).exists() and not config.overwrite:
        raise ConfigError(
            f"{family_out / FAMILY_JSON} exists already: add --overwrite to replace it"
        )
    device = resolve_device(config.device)
    saved = [load_dictionary(folder, device=str(device)) for folder in folders]
    subjects = subjects_of(saved, places, config)
    _check_one_data_spec(subjects)
    check_extras(subjects, config)
    model = _model_for(subjects, config)
    keep_freed_memory()
    outcome = SuiteOutcome()
    with temporary_folder(family_out) as temporary:
        rows = _rows(subjects[0], model, config, Path(temporary))
        before: Measured | None = None
        for subject in subjects:
            result, before = _evaluate(subject, model, rows, config, Path(temporary), before)
            outcome.results.append(result)
            outcome.reports.append(subject.out / PAGE_FILE)
    if wants_family:
        _write_family(outcome, subjects, rows, config, family_out)
    return outcome


def _check_one_data_spec(subjects: Sequence[Subject]) -> None:
    """Refuse dictionaries whose rows differ: their numbers could not be held side by side.

    Raises:
        ConfigError: naming what differs.
    """
    first = subjects[0]
    for other in subjects[1:]:
        for name in ("hook_point", "model", "text", "context_length", "row_rule", "norm_ceiling"):
            mine, theirs = getattr(first.spec, name), getattr(other.spec, name)
            if mine != theirs:
                raise ConfigError(
                    f"dictionaries of one family must read the same rows, but {name} of "
                    f"{first.saved.folder} is {mine} and of {other.saved.folder} is {theirs}: run "
                    "the command once for each"
                )


def _model_for(subjects: Sequence[Subject], config: DarkMatterConfig) -> LanguageModel | None:
    """The model, where anything needs it."""
    needed = (
        config.cache is None
        or config.n_loss_tokens > 0
        or config.wants("downstream")
        or config.wants("linear-maps")
    )
    return next(iter(load_models(subjects, config.device).values())) if needed else None


def _rows(
    subject: Subject, model: LanguageModel | None, config: DarkMatterConfig, folder: Path
) -> Rows:
    if config.cache is not None:
        return rows_of_cache(
            config.cache,
            subject.saved,
            n_rows=config.n_tokens,
            first_position=config.first_position,
            model=model,
            n_loss_tokens=config.n_loss_tokens,
        )
    assert model is not None
    return rows_of_text(
        model,
        subject.spec,
        folder,
        n_rows=config.n_tokens,
        first_position=config.first_position,
        n_loss_tokens=config.n_loss_tokens,
        batch_contexts=config.batch_contexts,
    )


def _evaluate(
    subject: Subject,
    model: LanguageModel | None,
    rows: Rows,
    config: DarkMatterConfig,
    folder: Path,
    before: Measured | None,
) -> tuple[EvaluationResult, Measured]:
    """Measure one dictionary and write its files."""
    saved, out = subject.saved, subject.out
    out.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder) as own_folder:
        measured = _measure_all(saved, out, rows, config, Path(own_folder), before)
        context = Context(subject, model, rows, config, measured[0].probe)
        extra = extra_findings(context)
    result = build_result(saved, measured, extra, rows, config)
    save_probe(
        out / PROBE_FILE,
        measured[0].probe,
        {"dictionary_hash": saved.content_hash, "hook_point": saved.hook_point},
    )
    write_report(out / PAGE_FILE, result)
    written = write_evaluation_result(out / RESULT_FILE, result)
    logger.info("wrote %s", out / RESULT_FILE)
    return written, measured[0]


def _measure_all(
    saved: SavedDictionary,
    out: Path,
    rows: Rows,
    config: DarkMatterConfig,
    folder: Path,
    before: Measured | None,
) -> list[Measured]:
    own = measure(
        saved.dictionary,
        own_encoder(saved.dictionary),
        rows,
        config,
        folder=folder,
        token_file=out / TOKENS_FILE,
        what=saved.name,
        before=before,
    )
    if not config.wants("pursuit"):
        return [own]
    pursued = measure(
        saved.dictionary,
        pursuit_encoder(saved.dictionary),
        rows,
        config,
        folder=folder,
        token_file=out / PURSUIT_TOKENS_FILE,
        what=f"{saved.name} with pursuit codes",
        before=own,
    )
    return [own, pursued]


def _write_family(
    outcome: SuiteOutcome,
    subjects: Sequence[Subject],
    rows: Rows,
    config: DarkMatterConfig,
    out: Path,
) -> None:
    family = family_of(
        outcome.results,
        [subject.out / TOKENS_FILE for subject in subjects],
        breakdown_l0=config.breakdown_l0,
        ridge=config.ridge,
    )
    outcome.notes += family.notes
    first = outcome.results[0]
    made_from = {
        name: first.made_from.get(name) for name in ("model", "model_hash", "hook_point")
    } | rows.described
    made_from["dictionaries"] = [result.dictionary_hash for result in outcome.results]
    write_family_report(out / FAMILY_PAGE, family, made_from)
    path = write_family(out, family, settings_of(config, rows), made_from)
    outcome.reports.insert(0, out / FAMILY_PAGE)
    logger.info("wrote %s", path)
