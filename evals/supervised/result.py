"""The files of a run: scores with definitions, a row per latent, a row per prompt and variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saelab.config import to_plain
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric
from saelab.formats.files import atomic_path, hash_of
from saelab.model.language_model import LanguageModel
from saelab.stats.bootstrap import LEVEL, over_seeds

from .config import SupervisedConfig
from .contenders import Candidate
from .figure_data import figures_from
from .findings import Findings
from .scores import MEASURES, Score
from .sites import CrossSection
from .tasks import Task

SUITE = "supervised"
RESULT_FILE = "supervised.json"
REPORT_FILE = "supervised.html"
PROMPTS_FILE = "supervised_prompts.parquet"
LATENTS_FILE = "supervised_latents.parquet"


def build_result(
    task: Task,
    model: LanguageModel,
    config: SupervisedConfig,
    sections: Sequence[CrossSection],
    candidates: Sequence[Candidate],
    findings: Findings,
) -> EvaluationResult:
    """Everything found out on one task, in one result over all dictionaries given."""
    hashes = {
        candidate.name: {
            place: saved.content_hash for place, saved in candidate.dictionaries.items()
        }
        for candidate in candidates
    }
    names = [candidate.name for candidate in candidates] or ["no dictionary"]
    settings = to_plain(config)
    del settings["out"], settings["overwrite"]
    return EvaluationResult(
        suite=SUITE,
        dictionary_name=", ".join(names),
        dictionary_hash=hash_of(hashes),
        settings=settings
        | {"interval": f"{LEVEL:.0%} percentile bootstrap over prompts", "notes": findings.notes},
        made_from={
            "model": model.name,
            "model_hash": model.content_hash,
            "task": task.name,
            "title": task.title,
            "cross_sections": {
                section.name: {
                    "sites": [str(site) for site in section.sites],
                    "edits": ["+".join(edit) for edit in section.edits],
                }
                for section in sections
            },
            "dictionaries": hashes,
            "checks": findings.checks,
        },
        metrics=tuple(_metric(score) for score in findings.scores),
        figure_data={
            "scores": [score.to_json() for score in findings.scores],
            "spread_over_seeds": spread_over_seeds(findings.scores),
            **figures_from(findings.scores, findings.histograms, findings.ceiling),
        },
        item_files={"prompts": PROMPTS_FILE, "latents": LATENTS_FILE},
        seed=config.prompt_seeds[0],
    )


def _metric(score: Score) -> MeasuredMetric:
    measure = MEASURES[score.measure]
    return MeasuredMetric(
        name=score.name,
        value=score.estimate.value,
        unit=measure.unit,
        definition=measure.definition,
    )


def spread_over_seeds(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Mean and deviation of every score that several seeds, of training or prompts, give."""
    members: dict[tuple[Any, ...], list[Score]] = {}
    for one in scores:
        place = (one.section, one.group or one.contender, one.measure, one.edit, one.mode)
        key = (*place, one.k, one.threshold, one.attribute, one.site)
        members.setdefault(key, []).append(one)
    fields = ("section", "group", "measure", "edit", "mode", "k", "threshold", "attribute", "site")
    return [
        dict(zip(fields, key, strict=True)) | over_seeds([one.estimate.value for one in group])
        for key, group in members.items()
        if len(group) > 1
    ]


def write_prompts(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One parquet row per prompt and variant.

    Columns: seed, section, edit (attributes changed; "" for none), variant (`contender|mode|k`, or
    a condition), prompt (its place among the evaluated prompts of that seed), metric,
    target_metric, prediction, answer_prediction (token ids), kl (nats, from the ground truth).
    """
    import pyarrow
    from pyarrow import parquet

    tables = []
    for row in rows:
        n = len(row["prompt"])
        columns: dict[str, Any] = {
            name: pyarrow.array([row[name]] * n, kind)
            for name, kind in (
                ("seed", pyarrow.int32()),
                ("section", pyarrow.string()),
                ("edit", pyarrow.string()),
                ("variant", pyarrow.string()),
            )
        }
        columns["prompt"] = pyarrow.array(row["prompt"].numpy(), pyarrow.int32())
        for name in ("prediction", "answer_prediction"):
            columns[name] = pyarrow.array(row[name].numpy(), pyarrow.int32())
        for name in ("metric", "target_metric", "kl"):
            empty = row[name] is None
            columns[name] = (
                pyarrow.nulls(n, pyarrow.float32())
                if empty
                else pyarrow.array(row[name].float().numpy())
            )
        tables.append(pyarrow.table(columns))
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.concat_tables(tables), temporary)


def write_latents(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One parquet row per live latent, site and cross-section.

    Columns: seed, section, dictionary, site, latent, on_rate (share of prompts), f1, kind (of
    predicate), interpretation (in words).
    """
    import pyarrow
    from pyarrow import parquet

    kinds = {
        "seed": pyarrow.int32(),
        "section": pyarrow.string(),
        "dictionary": pyarrow.string(),
        "site": pyarrow.string(),
        "latent": pyarrow.int32(),
        "on_rate": pyarrow.float64(),
        "f1": pyarrow.float64(),
        "kind": pyarrow.string(),
        "interpretation": pyarrow.string(),
    }
    columns = {
        name: pyarrow.array([row[name] for row in rows], kind) for name, kind in kinds.items()
    }
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)
