"""`run_supervised`: judge dictionaries on a task with the best dictionary that labels can give.

Everything that can be wrong is checked before the first long pass; results are written when all
numbers are there, the JSON last, so a result that exists is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelab.errors import ConfigError, did_you_mean
from saelab.formats.evaluation_result import EvaluationResult, write_evaluation_result
from saelab.memory import keep_freed_memory
from saelab.model.language_model import LanguageModel, load_language_model

from .approximation import (
    Approximation,
    approximate_candidates,
    approximate_skylines,
    measure_attributes,
    measure_conditions,
)
from .checks import GATE, base_accuracy, dependence, require_able, require_coverage, strong_pairs
from .config import SupervisedConfig
from .contenders import Candidate, form_candidates, require_sites, save_supervised
from .control import EditTest, edit_tests, measure_edit
from .findings import Findings
from .interpretation import interpret_candidate, sweep_thresholds
from .report import write_report
from .result import (
    LATENTS_FILE,
    PROMPTS_FILE,
    REPORT_FILE,
    RESULT_FILE,
    build_result,
    write_latents,
    write_prompts,
)
from .section import Material, Section, collect, open_section
from .sites import (
    CrossSection,
    PromptSite,
    check_sites,
    read_cross_sections,
    residual_cross_sections,
)
from .tasks import Task, load_task

logger = logging.getLogger(__name__)

BASE_PROMPTS = 200
"""Prompts on which the model must show that it can do the task."""


def run_supervised(folders: Sequence[Path], config: SupervisedConfig) -> EvaluationResult:
    """Judge dictionaries on a task; writes a JSON, two parquet files and a page to `config.folder`.

    Args:
        folders: saved dictionaries, or folders that hold some; none: the supervised dictionaries
            and the floors alone.
        config: settings.

    Raises:
        ConfigError: a result that exists and may not be overwritten; an unknown task, cross-section
            or parametrisation; a task whose words are not single tokens of the model; an attribute
            value without examples.
        ArtifactError: a folder without an intact dictionary, or one of another model, task or site.
        ModelError: an unknown model or site, or a model that cannot do the task.
    """
    out = config.folder
    if (out / RESULT_FILE).exists() and not config.overwrite:
        raise ConfigError(f"{out / RESULT_FILE} exists already: add --overwrite to replace it")
    keep_freed_memory()
    model = load_language_model(config.model, dtype=config.model_dtype, device=config.device)
    task = load_task(config.task, model)
    return judge_task(model, task, form_candidates(folders, model, task.name), config)


def judge_task(
    model: LanguageModel, task: Task, candidates: Sequence[Candidate], config: SupervisedConfig
) -> EvaluationResult:
    """Judge candidates on a task that is at hand; see `run_supervised`."""
    sections = sections_of(config, model, task, candidates)
    require_sites(candidates, sections)
    findings = Findings(ceiling=f"supervised {config.skylines[0]}")
    for seed in config.prompt_seeds:
        findings.checks[str(seed)] = check_task(model, task, config, seed, findings)
    for seed in config.prompt_seeds:
        material = collect(model, task, sections, config, seed)
        for section in sections:
            _judge(model, task, section, material, config, candidates, findings)
    result = build_result(task, model, config, sections, candidates, findings)
    out = config.folder
    out.mkdir(parents=True, exist_ok=True)
    write_prompts(out / PROMPTS_FILE, findings.prompt_rows)
    write_latents(out / LATENTS_FILE, findings.latent_rows)
    write_report(out / REPORT_FILE, result)
    written = write_evaluation_result(out / RESULT_FILE, result)
    logger.info("wrote %s", out / RESULT_FILE)
    return written


def sections_of(
    config: SupervisedConfig, model: LanguageModel, task: Task, candidates: Sequence[Candidate]
) -> list[CrossSection]:
    """The cross-sections of the settings: of a file, or those of the dictionaries themselves.

    Raises:
        ConfigError: no such cross-section, a site that the task does not have, or none at all.
        ArtifactError: the file of sites is not usable.
    """
    if config.sites is None:
        sections = _own_sites(task, candidates)
    else:
        sections = read_cross_sections(config.sites, task=task.name)
        names = [section.name for section in sections]
        unknown = [name for name in config.cross_section if name not in names]
        if unknown:
            raise ConfigError(
                f"{config.sites} has no cross-section {unknown[0]!r}; "
                f"{did_you_mean(unknown[0], names)}"
            )
        if config.cross_section:
            sections = [section for section in sections if section.name in config.cross_section]
    if not sections:
        raise ConfigError(
            "no sites: give --sites FILE, as `saelab eval supervised --task "
            f"{task.name} --find-sites FILE` writes it, or dictionaries whose sites are meant"
        )
    for section in sections:
        check_sites(model, task.positions, section.sites)
    return sections


def _own_sites(task: Task, candidates: Sequence[Candidate]) -> list[CrossSection]:
    """Each task site by itself, and every position at the hook points of the other candidates."""
    found: dict[str, CrossSection] = {}
    for candidate in candidates:
        for place in candidate.dictionaries:
            if candidate.is_task:
                sections = [CrossSection(place, (PromptSite.parse(place),), task.edits)]
            else:
                sections = residual_cross_sections(place, task.positions, task.edits)
            found |= {section.name: section for section in sections}
    return list(found.values())


def check_task(
    model: LanguageModel, task: Task, config: SupervisedConfig, seed: int, findings: Findings
) -> dict[str, Any]:
    """What must be known before numbers are believed: coverage, dependence, base accuracy.

    Raises:
        ConfigError: an attribute value without examples.
        ModelError: a model that cannot do the task.
    """
    fit = task.sample(config.n_fit, "train", seed)
    covered = require_coverage(task, fit)
    values = dependence(task, fit)
    few = task.sample(min(BASE_PROMPTS, config.n_eval), config.eval_split, seed)
    able = base_accuracy(model, task, few, batch_prompts=config.batch_prompts)
    require_able(model, task, able)
    rare = {name: len(one.rare) for name, one in covered.items() if one.rare}
    if rare:
        counted = ", ".join(f"{count} of {name}" for name, count in rare.items())
        findings.notes.append(
            f"Prompt seed {seed}: values with few fitting prompts (below 30): {counted}; their "
            "features are noisy."
        )
    pairs = strong_pairs(values)
    if pairs and "mean" in config.skylines:
        named = ", ".join(f"{one} and {other}" for one, other in pairs)
        findings.notes.append(
            f"Prompt seed {seed}: {named} depend on each other, so the mean dictionary counts what "
            "they share twice; read the MSE one."
        )
    return {
        "fitting prompts of the rarest value": {name: one.fewest for name, one in covered.items()},
        "dependence (Cramér's V)": {" and ".join(p): round(v, 4) for p, v in values.items()},
        "model: prompts tried": able.n_prompts,
        "model: mean metric": able.metric,
        "model: share with a positive metric": able.positive,
        "model: share predicted right": able.predicted,
    }


def _judge(
    model: LanguageModel,
    task: Task,
    section: CrossSection,
    material: Material,
    config: SupervisedConfig,
    candidates: Sequence[Candidate],
    findings: Findings,
) -> None:
    """All tests at one cross-section."""
    here = open_section(model, task, section, material, config)
    if config.save_skylines:
        _save_skylines(here)
    conditions = measure_conditions(here)
    skylines = approximate_skylines(here, conditions)
    measure_attributes(here)
    fitting = [candidate for candidate in candidates if candidate.fits(section)]
    judging = _section_passes(here, skylines[here.ceiling]) or config.judge_anyway
    meanings = {}
    if judging:
        approximate_candidates(here, conditions, fitting)
        for candidate in fitting:
            meanings[candidate.name] = interpret_candidate(here, candidate)
            sweep_thresholds(here, conditions, candidate, meanings[candidate.name])
            findings.add_latents(here, candidate, meanings[candidate.name])
    for test in edit_tests(here):
        test.measure_references()
        passes = _edit_passes(here, test) or config.judge_anyway
        if not (judging and passes):
            continue
        for candidate in fitting:
            measure_edit(test, candidate, meanings[candidate.name])
    findings.add_section(here)


def _save_skylines(section: Section) -> None:
    """Save the supervised dictionaries of the first parametrisation, site by site."""
    config, material = section.config, section.material
    for kind in config.skylines:
        for site, dictionary in section.skylines[f"supervised {kind}"].items():
            save_supervised(
                config.folder / "dictionaries" / str(site) / f"supervised-{kind}",
                dictionary,
                model=section.model,
                task=section.task,
                site=site,
                prompts=material.fit,
                activations=material.fit_activations[site],
                parametrisation=config.parametrisations[0],
            )


def _section_passes(section: Section, ceiling: Approximation) -> bool:
    """Whether the supervised dictionary passes test 1 here; says so where it does not."""
    scores = {
        "sufficiency": (ceiling.sufficiency.value, GATE.sufficiency),
        "necessity": (ceiling.necessity.value, GATE.necessity),
    }
    # Necessity is undefined where mean ablation hardly hurts; there is nothing to be necessary for.
    failed = [
        f"{name} {value:.2f} (below {least:g})"
        for name, (value, least) in scores.items()
        if value is not None and value < least
    ]
    if failed:
        section.notes.append(
            f"{section.section.name}: the supervised dictionary itself fails test 1 here: "
            f"{', '.join(failed)}; no dictionary is judged here unless --judge-anyway is given."
        )
    return not failed


def _edit_passes(section: Section, test: EditTest) -> bool:
    """Whether the supervised edit works; says so where it does not, or hardly can show it."""
    accuracy, gain = test.accuracy[section.ceiling], test.gain()
    name = f"{section.section.name}, edit {test.pairs.name}"
    if accuracy < GATE.accuracy:
        section.notes.append(
            f"{name}: the supervised edit has an accuracy of {accuracy:.2f} (below "
            f"{GATE.accuracy:g}); no dictionary is judged by this edit unless --judge-anyway is "
            "given."
        )
    elif gain < GATE.accuracy_over_noop:
        section.notes.append(
            f"{name}: without any intervention {accuracy - gain:.2f} of the predictions agree "
            f"already, {gain:.2f} fewer than after the supervised edit; accuracies are shown but "
            "left out of averages."
        )
    return accuracy >= GATE.accuracy
