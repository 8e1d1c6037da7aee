"""The suite "supervised": judge dictionaries on a task beside the best that labels can give.

Everything that can be wrong is checked before the first long pass. All dictionaries together have
one result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from saelab.errors import ConfigError, did_you_mean
from saelab.formats.chart import Chart
from saelab.formats.evaluation_result import Table
from saelab.formats.files import hash_of
from saelab.memory import keep_freed_memory
from saelab.model.language_model import LanguageModel, load_language_model
from saelab.stats.bootstrap import LEVEL, Estimate

from ..suite import Definition, Measurement
from .approximation import (
    APPROXIMATION,
    approximate_candidates,
    approximate_skylines,
    approximation_charts,
    approximation_table,
    measure_attributes,
    measure_conditions,
)
from .contenders import SiteDictionaries, form_candidates, require_sites, save_supervised
from .control import (
    CONTROL,
    TRADEOFF,
    TRUTH,
    EditTest,
    accuracy_charts,
    control_table,
    edit_tests,
    relative_tradeoff_charts,
    tradeoff_charts,
)
from .interpretation import (
    INTERPRETATION,
    OCCLUSION,
    histogram_charts,
    interpret_candidate,
    occlusion_charts,
    sweep_charts,
    sweep_thresholds,
)
from .scores import ContenderScore, numbers_table, pivot, spread_over_seeds
from .section import Section, SupervisedScores, check_task, collect, open_section
from .sites import (
    CrossSection,
    PromptSite,
    check_sites,
    read_cross_sections,
    residual_cross_sections,
)
from .suite import SupervisedConfig
from .tasks import Task, load_task

DEFINITIONS = {
    definition.name: definition
    for definition in (*APPROXIMATION, *CONTROL, *TRADEOFF, *INTERPRETATION, *OCCLUSION)
}
"""What each measure means, in reading order."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Least scores of the supervised dictionary for others to be judged at a cross-section."""

    sufficiency: float = 0.8
    """Of test 1."""
    necessity: float = 0.8
    """Of test 1."""
    accuracy: float = 0.8
    """Edit accuracy of test 2."""
    accuracy_over_noop: float = 0.1
    """By how much that must exceed the accuracy without an intervention."""


GATE = Gate()


def load_model_and_task(config: SupervisedConfig) -> tuple[LanguageModel, Task]:
    """The language model and the task of the settings.

    Raises:
        ModelError: an unknown model.
        ConfigError: an unknown task, or one whose words are not single tokens of the model.
    """
    model = load_language_model(config.model, dtype=config.model_dtype, device=config.device)
    return model, load_task(config.task, model)


def measure(
    folders: Sequence[Path], _: Sequence[Path], config: SupervisedConfig
) -> list[Measurement]:
    """Judge dictionaries on the task of the settings.

    Args:
        folders: saved dictionaries, or folders that hold some; none: the supervised dictionaries
            and the floors alone.

    Raises:
        ConfigError: an unknown task, cross-section or parametrisation; a task whose words are not
            single tokens of the model; an attribute value without examples.
        ArtifactError: a folder without an intact dictionary, or one of another model, task or site.
        ModelError: an unknown model or site, or a model that cannot do the task.
    """
    keep_freed_memory()
    model, task = load_model_and_task(config)
    return [judge_task(model, task, form_candidates(folders, model, task.name), config)]


def judge_task(
    model: LanguageModel,
    task: Task,
    candidates: Sequence[SiteDictionaries],
    config: SupervisedConfig,
) -> Measurement:
    """Judge candidates on a loaded task; see `measure`."""
    sections = sections_of(config, model, task, candidates)
    require_sites(candidates, sections)
    results, checks = SupervisedScores(), {}
    for seed in config.prompt_seeds:
        checks[str(seed)], notes = check_task(model, task, config, seed)
        results.notes += notes
    for seed in config.prompt_seeds:
        material = collect(model, task, sections, config, seed)
        for section in sections:
            _judge(open_section(model, task, section, material, config, results), candidates)
    hashes = {
        candidate.name: {at: saved.content_hash for at, saved in candidate.dictionaries.items()}
        for candidate in candidates
    }
    name = ", ".join(hashes) or "no dictionary"
    cross_sections = {
        section.name: {
            "sites": [str(site) for site in section.sites],
            "edits": ["+".join(edit) for edit in section.edits],
        }
        for section in sections
    }
    title = task.title.rstrip(".")
    return Measurement(
        name=name,
        content_hash=hash_of(hashes),
        out=config.folder,
        numbers={score.name: score.estimate.value for score in results.scores},
        made_from={
            "model": model.name,
            "model_hash": model.content_hash,
            "task": task.name,
            "title": task.title,
            "cross_sections": cross_sections,
            "dictionaries": hashes,
            "checks": checks,
        },
        settings={"interval": f"{LEVEL:.0%} percentile bootstrap over prompts"},
        facts={"scores": results.scores},
        data={
            "scores": results.scores,
            "histograms": results.histograms,
            "checks": checks,
            "cross_sections": cross_sections,
        },
        rows={
            "scores": _columns_of([score.to_json() for score in results.scores]),
            "prompts": _prompt_columns(results.prompt_rows),
            "latents": _columns_of(results.latent_rows),
        },
        seed=config.prompt_seeds[0],
        title=f"Supervised dictionaries on {task.name}",
        subtitle=f"{title[:1].upper()}{title[1:]}. Model {model.name}; {config.n_fit:,} fitting, "
        f"{config.n_interpret:,} interpreting and {config.n_eval:,} evaluated prompts (split "
        f"{config.eval_split}); {len(config.prompt_seeds)} prompt seed(s). Judged: {name}.",
        notes=tuple(results.notes),
    )


def definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """What every score means: its measure's definition under its own name, test by test."""
    order = list(DEFINITIONS)
    groups = list(dict.fromkeys(definition.group for definition in DEFINITIONS.values()))
    scores = sorted(
        facts["scores"],
        key=lambda s: (groups.index(DEFINITIONS[s.measure].group), order.index(s.measure)),
    )
    return [replace(DEFINITIONS[score.measure], name=score.name) for score in scores]


def charts(data: Mapping[str, Any]) -> list[Chart]:
    """The charts of all tests, in reading order."""
    scores = data["scores"]
    return [
        *approximation_charts(scores),
        *accuracy_charts(scores),
        *tradeoff_charts(scores),
        *relative_tradeoff_charts(scores),
        *occlusion_charts(scores),
        *histogram_charts(data["histograms"]),
        *sweep_charts(scores),
    ]


def tables(data: Mapping[str, Any]) -> list[Table]:
    """The tables of the page; the first one is shown on the terminal."""
    scores = data["scores"]
    return [
        _short_table(scores),
        approximation_table(scores),
        control_table(scores),
        *_spread_tables(scores),
        numbers_table(
            "Checked before judging",
            ("check", "prompt seed", "value"),
            [
                (name, seed, str(value))
                for seed, checks in data["checks"].items()
                for name, value in checks.items()
            ],
        ),
        numbers_table(
            "Cross-sections",
            ("name", "sites", "edits"),
            [
                (name, ", ".join(section["sites"]), ", ".join(section["edits"]))
                for name, section in data["cross_sections"].items()
            ],
        ),
    ]


def _short_table(scores: Sequence[ContenderScore]) -> Table:
    """A line of test 1 per contender and cross-section, then one per edit."""
    shown = ("sufficiency", "necessity", "accuracy", "weight_removed")
    rows = pivot(
        (
            (s.section, s.contender, s.edit, s.mode if s.edit else "", s.k, s.prompt_seed),
            s.measure,
            "undefined" if s.estimate.value is None else f"{s.estimate.value:.3f}",
        )
        for s in scores
        if s.threshold is None and not s.site and s.mode != TRUTH and s.measure in shown
    )
    return numbers_table(
        "Tests 1 and 2 in short",
        ("cross-section", "contender", "edit", "how", "k", "suff.", "nec.", "accuracy", "weight"),
        [
            (*key[:5], *map(texts.get, shown))
            for key, texts in sorted(rows.items(), key=lambda row: row[0][:2])
        ],
        missing="",
    )


def _spread_tables(scores: Sequence[ContenderScore]) -> list[Table]:
    shown = ("sufficiency", "necessity", "accuracy")
    rows = [row for row in spread_over_seeds(scores) if row["measure"] in shown]
    names = ("group", "section", "measure", "edit", "mode", "k", "n_seeds", "mean")
    table = numbers_table(
        "Spread over seeds of training and prompts",
        ("contender", "cross-section", "measure", "edit", "how", "k", "seeds", "mean", "sd"),
        [[row[name] for name in (*names, "standard_deviation")] for row in rows],
    )
    return [table] if rows else []


def sections_of(
    config: SupervisedConfig,
    model: LanguageModel,
    task: Task,
    candidates: Sequence[SiteDictionaries],
) -> list[CrossSection]:
    """The cross-sections of the settings: of a file, or those of the dictionaries themselves.

    Raises:
        ConfigError: no such cross-section, a site that the task does not have, or none at all.
        ArtifactError: the file of sites is not usable.
    """
    if config.sites is None:
        sections = _sites_of_candidates(task, candidates)
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


def _sites_of_candidates(task: Task, candidates: Sequence[SiteDictionaries]) -> list[CrossSection]:
    """Each task site by itself, and every position at the hook points of the other candidates."""
    sections: dict[str, CrossSection] = {}
    for candidate in candidates:
        for name in candidate.dictionaries:
            if candidate.is_task:
                at_name = [CrossSection(name, (PromptSite.parse(name),), task.edits)]
            else:
                at_name = residual_cross_sections(name, task.positions, task.edits)
            sections |= {section.name: section for section in at_name}
    return list(sections.values())


def _judge(section: Section, candidates: Sequence[SiteDictionaries]) -> None:
    """All tests at one cross-section."""
    if section.config.save_skylines:
        _save_skylines(section)
    conditions = measure_conditions(section)
    skylines = approximate_skylines(section, conditions)
    measure_attributes(section)
    judging = _section_passes(section, skylines[section.ceiling])
    fitting = [candidate for candidate in candidates if candidate.fits(section.section) and judging]
    approximate_candidates(section, conditions, fitting)
    meanings = {}
    for candidate in fitting:
        meanings[candidate.name] = interpret_candidate(section, candidate)
        sweep_thresholds(section, conditions, candidate, meanings[candidate.name])
    for test in edit_tests(section):
        test.measure_references()
        if _edit_passes(section, test):
            for candidate in fitting:
                test.measure_candidate(candidate, meanings[candidate.name])


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


def _section_passes(section: Section, ceiling: Mapping[str, Estimate]) -> bool:
    """Whether dictionaries are judged after the supervised one's test 1; says so where it fails."""
    # Necessity is undefined where mean ablation hardly hurts; there is nothing to be necessary for.
    failed = [
        f"{name} {value:.2f} (below {least:g})"
        for name, least in (("sufficiency", GATE.sufficiency), ("necessity", GATE.necessity))
        if (value := ceiling[name].value) is not None and value < least
    ]
    if failed:
        section.results.notes.append(
            f"{section.section.name}: the supervised dictionary itself fails test 1 here: "
            f"{', '.join(failed)}; no dictionary is judged here unless --judge-anyway is given."
        )
    return not failed or section.config.judge_anyway


def _edit_passes(section: Section, test: EditTest) -> bool:
    """Whether dictionaries are judged by an edit; says so where the supervised one fails, or hardly
    can show that it works."""
    accuracy, gain = test.accuracy[section.ceiling], test.gain()
    name = f"{section.section.name}, edit {test.pairs.name}"
    if accuracy < GATE.accuracy:
        section.results.notes.append(
            f"{name}: the supervised edit has an accuracy of {accuracy:.2f} (below "
            f"{GATE.accuracy:g}); no dictionary is judged by this edit unless --judge-anyway is "
            "given."
        )
    elif gain < GATE.accuracy_over_noop:
        section.results.notes.append(
            f"{name}: without any intervention {accuracy - gain:.2f} of the predictions agree "
            f"already, {gain:.2f} fewer than after the supervised edit; accuracies are shown but "
            "left out of averages."
        )
    return accuracy >= GATE.accuracy or section.config.judge_anyway


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows of equal keys as columns."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _prompt_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row per prompt and variant.

    Columns: seed, section, edit (attributes changed; "" for none), variant (`contender|mode|k`, or
    a condition), prompt (its index among the evaluated prompts of that seed), prediction,
    answer_prediction (token ids), metric, target_metric, kl (nats, from the ground truth).
    """
    import pyarrow

    kinds: dict[str, Any] = {"seed": pyarrow.int32()}
    kinds |= dict.fromkeys(("section", "edit", "variant"), pyarrow.string())
    kinds |= dict.fromkeys(("prompt", "prediction", "answer_prediction"), pyarrow.int32())
    kinds |= dict.fromkeys(("metric", "target_metric", "kl"), pyarrow.float32())

    def column(name: str, row: Mapping[str, Any]) -> Any:
        if isinstance(row[name], Tensor):
            return pyarrow.array(row[name].numpy()).cast(kinds[name])
        return pyarrow.array([row[name]] * len(row["prompt"]), kinds[name])

    return {
        name: pyarrow.chunked_array([column(name, row) for row in rows], kind)
        for name, kind in kinds.items()
    }
