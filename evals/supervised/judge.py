"""`judge_task`: judge dictionaries on a task beside the best dictionary that labels can give.

Everything that can be wrong is checked before the first long pass. All dictionaries together have
one result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from .checks import GATE, check_task
from .contenders import Candidate, form_candidates, require_sites, save_supervised
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
from .predicates import Interpretations, histogram_by_kind
from .scores import Key, Score, spread_over_seeds
from .section import Material, Section, collect, open_section
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


@dataclass(eq=False)
class SupervisedScores:
    """Everything that a run finds out, over its cross-sections and seeds of the prompts."""

    ceiling: str
    """Name of the supervised dictionary that is the ceiling."""
    scores: list[Score] = field(default_factory=list)
    prompt_rows: list[dict[str, Any]] = field(default_factory=list)
    latent_rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader should know, in sentences."""
    histograms: list[dict[str, Any]] = field(default_factory=list)
    """Per cross-section, candidate and seed: live latents by F1 and kind of predicate."""
    checks: dict[str, Any] = field(default_factory=dict)
    """Seed of the prompts -> what was checked before anything was judged."""

    def add_section(self, section: Section) -> None:
        """Take in the scores of a cross-section."""
        self.scores += section.scores
        self.prompt_rows += section.prompt_rows
        self.notes += section.notes

    def add_latents(
        self,
        section: Section,
        candidate: Candidate,
        interpretations: Mapping[PromptSite, Interpretations],
    ) -> None:
        """Take in what a candidate's latents mean."""
        for site, meant in interpretations.items():
            self.histograms.append(
                {"group": candidate.group, "site": str(site), "counts": histogram_by_kind(meant)}
            )
            for latent in meant.live().nonzero().flatten().tolist():
                self.latent_rows.append(
                    {
                        "seed": section.material.seed,
                        "section": section.section.name,
                        "dictionary": candidate.name,
                        "site": str(site),
                        "latent": latent,
                        "on_rate": float(meant.on_rate[latent]),
                        "f1": float(meant.f1[latent]),
                        "kind": meant.families[int(meant.family[latent])].kind,
                        "interpretation": meant.words[latent],
                    }
                )


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
        config: settings.

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
    model: LanguageModel, task: Task, candidates: Sequence[Candidate], config: SupervisedConfig
) -> Measurement:
    """Judge candidates on a task that is at hand; see `measure`."""
    sections = sections_of(config, model, task, candidates)
    require_sites(candidates, sections)
    scores = SupervisedScores(ceiling=f"supervised {config.skylines[0]}")
    for seed in config.prompt_seeds:
        scores.checks[str(seed)], notes = check_task(model, task, config, seed)
        scores.notes += notes
    for seed in config.prompt_seeds:
        material = collect(model, task, sections, config, seed)
        for section in sections:
            _judge(model, task, section, material, config, candidates, scores)
    return _measurement(model, task, sections, candidates, config, scores)


def _measurement(
    model: LanguageModel,
    task: Task,
    sections: Sequence[CrossSection],
    candidates: Sequence[Candidate],
    config: SupervisedConfig,
    scores: SupervisedScores,
) -> Measurement:
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
    made_from = {
        "model": model.name,
        "model_hash": model.content_hash,
        "task": task.name,
        "title": task.title,
        "cross_sections": cross_sections,
        "dictionaries": hashes,
        "checks": scores.checks,
    }
    title = task.title.rstrip(".")
    return Measurement(
        name=name,
        content_hash=hash_of(hashes),
        out=config.folder,
        numbers={score.name: score.estimate.value for score in scores.scores},
        made_from=made_from,
        settings={"interval": f"{LEVEL:.0%} percentile bootstrap over prompts"},
        facts={"scores": scores.scores},
        data={
            "scores": scores.scores,
            "histograms": scores.histograms,
            "checks": scores.checks,
            "cross_sections": cross_sections,
        },
        rows={
            "scores": columns_of([score.to_json() for score in scores.scores]),
            "prompts": prompt_columns(scores.prompt_rows),
            "latents": columns_of(scores.latent_rows),
        },
        seed=config.prompt_seeds[0],
        title=f"Supervised dictionaries on {task.name}",
        subtitle=f"{title[:1].upper()}{title[1:]}. Model {model.name}; {config.n_fit:,} fitting, "
        f"{config.n_interpret:,} interpreting and {config.n_eval:,} evaluated prompts (split "
        f"{config.eval_split}); {len(config.prompt_seeds)} prompt seed(s). Judged: {name}.",
        notes=tuple(scores.notes),
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
    checks = [
        (name, seed, str(value))
        for seed, found in data["checks"].items()
        for name, value in found.items()
    ]
    sections = [
        (name, ", ".join(section["sites"]), ", ".join(section["edits"]))
        for name, section in data["cross_sections"].items()
    ]
    return [
        _short_table(scores),
        approximation_table(scores),
        control_table(scores),
        *_spread_tables(scores),
        _table("Checked before judging", ("check", "prompt seed", "value"), checks),
        _table("Cross-sections", ("name", "sites", "edits"), sections),
    ]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    return Table(
        title=title, columns=tuple(columns), rows=tuple(map(tuple, rows)), section="Numbers"
    )


def _short_table(scores: Sequence[Score]) -> Table:
    """A line of test 1 per contender and cross-section, then one per edit."""
    rows: dict[Key, dict[str, str]] = {}
    for score in scores:
        if score.threshold is None and not score.site and score.mode != TRUTH:
            value = score.estimate.value
            key = (score.section, score.contender, score.edit, score.mode if score.edit else "")
            found = rows.setdefault((*key, score.k, score.prompt_seed), {})
            found[score.measure] = "undefined" if value is None else f"{value:.3f}"
    shown = ("sufficiency", "necessity", "accuracy", "weight_removed")
    return _table(
        "Tests 1 and 2 in short",
        ("cross-section", "contender", "edit", "how", "k", "suff.", "nec.", "accuracy", "weight"),
        [
            (*key[:4], "" if key[4] is None else key[4], *(found.get(n, "") for n in shown))
            for key, found in sorted(rows.items(), key=lambda row: row[0][:2])
            if set(shown) & set(found)
        ],
    )


def _spread_tables(scores: Sequence[Score]) -> list[Table]:
    shown = ("sufficiency", "necessity", "accuracy")
    rows = [
        row for row in spread_over_seeds(scores) if row["measure"] in shown and row["n_seeds"] > 1
    ]
    if not rows:
        return []
    names = ("group", "section", "measure", "edit", "mode", "k", "n_seeds", "mean")
    return [
        _table(
            "Spread over seeds of training and prompts",
            ("contender", "cross-section", "measure", "edit", "how", "k", "seeds", "mean", "sd"),
            [
                ["–" if row[name] is None else row[name] for name in (*names, "standard_deviation")]
                for row in rows
            ],
        )
    ]


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
    sections: dict[str, CrossSection] = {}
    for candidate in candidates:
        for name in candidate.dictionaries:
            if candidate.is_task:
                at_name = [CrossSection(name, (PromptSite.parse(name),), task.edits)]
            else:
                at_name = residual_cross_sections(name, task.positions, task.edits)
            sections |= {section.name: section for section in at_name}
    return list(sections.values())


def _judge(
    model: LanguageModel,
    task: Task,
    section: CrossSection,
    material: Material,
    config: SupervisedConfig,
    candidates: Sequence[Candidate],
    scores: SupervisedScores,
) -> None:
    """All tests at one cross-section."""
    opened = open_section(model, task, section, material, config)
    if config.save_skylines:
        _save_skylines(opened)
    conditions = measure_conditions(opened)
    skylines = approximate_skylines(opened, conditions)
    measure_attributes(opened)
    fitting = [candidate for candidate in candidates if candidate.fits(section)]
    judging = _section_passes(opened, skylines[opened.ceiling]) or config.judge_anyway
    meanings = {}
    if judging:
        approximate_candidates(opened, conditions, fitting)
        for candidate in fitting:
            meanings[candidate.name] = interpret_candidate(opened, candidate)
            sweep_thresholds(opened, conditions, candidate, meanings[candidate.name])
            scores.add_latents(opened, candidate, meanings[candidate.name])
    for test in edit_tests(opened):
        test.measure_references()
        passes = _edit_passes(opened, test) or config.judge_anyway
        if not (judging and passes):
            continue
        for candidate in fitting:
            test.measure_candidate(candidate, meanings[candidate.name])
    scores.add_section(opened)


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
    """Whether the supervised dictionary passes test 1 opened; says so where it does not."""
    # Necessity is undefined where mean ablation hardly hurts; there is nothing to be necessary for.
    failed = [
        f"{name} {value:.2f} (below {least:g})"
        for name, least in (("sufficiency", GATE.sufficiency), ("necessity", GATE.necessity))
        if (value := ceiling[name].value) is not None and value < least
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


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows of equal keys as columns."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def prompt_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row per prompt and variant.

    Columns: seed, section, edit (attributes changed; "" for none), variant (`contender|mode|k`, or
    a condition), prompt (its index among the evaluated prompts of that seed), prediction,
    answer_prediction (token ids), metric, target_metric, kl (nats, from the ground truth).
    """
    import pyarrow

    columns: dict[str, list[Any]] = {}
    for row in rows:
        n = len(row["prompt"])
        for name in ("seed", "section", "edit", "variant"):
            kind = pyarrow.int32() if name == "seed" else pyarrow.string()
            columns.setdefault(name, []).append(pyarrow.array([row[name]] * n, kind))
        for name in ("prompt", "prediction", "answer_prediction"):
            values = pyarrow.array(row[name].numpy(), pyarrow.int32())
            columns.setdefault(name, []).append(values)
        for name in ("metric", "target_metric", "kl"):
            empty = pyarrow.nulls(n, pyarrow.float32())
            values = empty if row[name] is None else pyarrow.array(row[name].float().numpy())
            columns.setdefault(name, []).append(values)
    return {name: pyarrow.chunked_array(parts) for name, parts in columns.items()}
