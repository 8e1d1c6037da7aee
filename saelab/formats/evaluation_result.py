"""The file in which an evaluation suite reports on one dictionary, or on several together.

One JSON per suite and dictionary: what was measured, on what, every number with its unit and its
definition, charts and tables as plain data (a report or a dashboard draws them without knowing the
suite), and the names of the per-item files beside it. Readers need neither torch nor the suite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from saelab.config import from_plain, to_plain
from saelab.errors import ArtifactError, ConfigError

from .chart import Chart
from .files import atomic_path, read_json
from .manifest import check_item_files, check_manifest, new_manifest, write_manifest

Better = Literal["lower", "higher", "neither"]

EVALUATION_RESULT_KIND = "evaluation_result"
"""Version 1 had no charts, tables and headings; its numbers are read, its charts are gone."""
COMPARISON_FILE = "compare.json"
COMPARISON_KIND = "comparison"
"""What that file was until it became a result. Version 2 had all that a result has, and more."""
RESULT_KINDS = (EVALUATION_RESULT_KIND, COMPARISON_KIND)
IN_SHORT = "In short"
"""Section of the tables at the top of a page, which the terminal shows too."""
METRIC_KEYS = {"name", "value", "unit", "definition"}


@dataclass(frozen=True, kw_only=True)
class MeasuredMetric:
    """A number with what it means."""

    name: str
    """Key, as in `saelab.stats.metrics.METRICS` where the metric is a shared one."""
    value: float | int | None
    """The number; None where it is undefined, which the definition explains."""
    unit: str
    """Unit; "1" for ratios."""
    definition: str
    """How the number was computed, in words."""
    group: str = "Numbers"
    """Heading that it is under."""
    better: Better = "neither"
    """Which direction is the better one."""
    source: str = ""
    """Paper or equation it is from."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a number means, with braces for facts of a run where they are not filled in yet."""

    name: str
    """Key of the number."""
    unit: str
    """Unit; "1" for ratios."""
    text: str
    """How it is computed, in words."""
    better: Better = "neither"
    """Which direction is the better one."""
    group: str = "Numbers"
    """Heading under which it stands."""
    source: str = ""
    """Paper or equation it is from."""

    def measured(self, value: float | int | None) -> MeasuredMetric:
        """The number with its definition."""
        return MeasuredMetric(
            name=self.name,
            value=value,
            unit=self.unit,
            definition=self.text,
            group=self.group,
            better=self.better,
            source=self.source,
        )


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a result that is no list of metrics."""

    title: str
    """Caption."""
    columns: tuple[str, ...]
    """Headings."""
    rows: tuple[tuple[Any, ...], ...]
    """Cells: text, numbers, or None."""
    section: str = "Tables"
    """Heading of the page that it is under; `IN_SHORT`: at its top."""
    note: str = ""
    """Paragraph above it."""


@dataclass(frozen=True, kw_only=True)
class ResultPage:
    """What only the page of a result shows."""

    title: str = ""
    """Heading of its page; empty: made of suite and dictionary."""
    subtitle: str = ""
    """Sentence under the heading: what was evaluated on what."""
    headline: tuple[str, ...] = ()
    """Names of the metrics that matter most."""
    charts: tuple[Chart, ...] = ()
    """Its charts, in reading order."""
    tables: tuple[Table, ...] = ()
    """Its tables, in reading order."""
    notes: tuple[str, ...] = ()
    """What a reader should know, in sentences."""


PAGE_FIELDS = tuple(page_field.name for page_field in fields(ResultPage))


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(ResultPage):
    """What one suite found out about one dictionary."""

    suite: str
    """Name of the suite, such as "core"."""
    dictionary_name: str
    """Folder name of the dictionary, for people."""
    dictionary_hash: str
    """Content hash of the dictionary, for machines."""
    settings: dict[str, Any]
    """Everything that decided the numbers, as plain JSON values."""
    made_from: dict[str, Any]
    """Names and content hashes of the model, hook point and text."""
    metrics: tuple[MeasuredMetric, ...]
    """The numbers, in reading order."""
    asked: dict[str, Any] = field(default_factory=dict)
    """Settings as the command was given them, by which the same command knows its result again."""
    item_files: dict[str, str] = field(default_factory=dict)
    """By what the rows are ("features"), the name of the file beside this one."""
    seed: int | None = None
    """Seed of everything random in the suite; None where nothing is."""
    created: str | None = None
    """UTC time of writing; set by the writer."""
    library_versions: dict[str, str] = field(default_factory=dict)
    """Versions the numbers can depend on; set by the writer."""

    def value(self, name: str) -> float | int | None:
        """The value of a metric.

        Raises:
            ArtifactError: the result has no such metric.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric.value
        raise ArtifactError(
            f"the {self.suite} result of {self.dictionary_name} has no metric {name!r}; it has "
            + ", ".join(metric.name for metric in self.metrics)
        )


def write_evaluation_result(path: Path, result: EvaluationResult) -> EvaluationResult:
    """Write a result as JSON, atomically; returns it with its time and versions.

    Raises:
        ArtifactError: a number is NaN or infinite, or a metric is named twice.
    """
    manifest = new_manifest(
        EVALUATION_RESULT_KIND,
        seed=result.seed,
        config=result.settings,
        made_from=result.made_from,
    )
    del manifest["config"]
    content = manifest | _content_of(result) | {"asked": to_plain(result.asked)}
    written = check_evaluation_result(content, path)
    write_manifest(path, content)
    return written


def read_evaluation_result(path: Path, *, check_files: bool = True) -> EvaluationResult:
    """Read a result and check it.

    Args:
        path: the JSON file.
        check_files: check those of the files it names that are there, too.

    Raises:
        ArtifactError: missing, damaged, of another kind, or from a newer saelab; or a file beside
            it was changed since.
    """
    content = read_json(path)
    old = isinstance(content, dict) and content.get("kind") == COMPARISON_KIND
    content = check_manifest(content, path, COMPARISON_KIND if old else EVALUATION_RESULT_KIND)
    if old and content["schema_version"] == 1:
        raise ArtifactError(
            f"{path} was written by an older saelab, which stored no charts: make it again with "
            f"`saelab compare RUN … --out {path.parent}`, which uses the evaluations that are there"
        )
    result = check_evaluation_result(content, path)
    if check_files:
        check_item_files(content, path, may_be_missing=True)
    return result


def _content_of(result: EvaluationResult) -> dict[str, Any]:
    return {
        "suite": result.suite,
        "dictionary": {"name": result.dictionary_name, "hash": result.dictionary_hash},
        "settings": result.settings,
        "metrics": [asdict(metric) for metric in result.metrics],
        **{name: to_plain(getattr(result, name)) for name in PAGE_FIELDS},
        "item_files": result.item_files,
    }


def check_evaluation_result(content: dict[str, Any], path: Path) -> EvaluationResult:
    """Turn parsed JSON into a result, trusting nothing; `path` is named in errors.

    Raises:
        ArtifactError: with every problem found.
    """
    problems = _shape_problems(content) or _metric_problems(content["metrics"])
    if problems:
        raise ArtifactError(
            f"{path} is not a usable evaluation result: {'; '.join(problems)}; evaluate again with "
            "--overwrite"
        )
    return EvaluationResult(
        suite=content["suite"],
        dictionary_name=content["dictionary"]["name"],
        dictionary_hash=content["dictionary"]["hash"],
        settings=content["settings"],
        asked=content.get("asked", {}),
        made_from=content["made_from"],
        metrics=tuple(MeasuredMetric(**metric) for metric in content["metrics"]),
        **_page_of(content, path),
        item_files=content["item_files"],
        seed=content.get("seed"),
        created=content.get("created"),
        library_versions=content.get("library_versions", {}),
    )


def _page_of(content: dict[str, Any], path: Path) -> dict[str, Any]:
    given = {name: content[name] for name in PAGE_FIELDS if name in content}
    try:
        page = from_plain(ResultPage, given, str(path))
    except ConfigError as error:
        raise ArtifactError(
            f"{path} is not a usable evaluation result: {error}; evaluate again with --overwrite"
        ) from None
    shown = {name: getattr(page, name) for name in PAGE_FIELDS}
    if content.get("schema_version") == 1:
        suite = content["suite"].replace("_", "-")
        shown["notes"] = (
            "This result was written by an older saelab, which stored no charts: `saelab eval "
            f"{suite} FOLDER --overwrite` measures it again and draws them.",
        )
    return shown


def _shape_problems(content: dict[str, Any]) -> list[str]:
    types = {"suite": str, "metrics": list}
    types |= dict.fromkeys(("dictionary", "settings", "made_from", "item_files"), dict)
    problems = [
        f"{key!r} is missing or no {expected.__name__}"
        for key, expected in types.items()
        if not isinstance(content.get(key), expected)
    ]
    if problems:
        return problems
    texts = {f"dictionary {key!r}": content["dictionary"].get(key) for key in ("name", "hash")}
    texts |= {f"the file of {items!r}": name for items, name in content["item_files"].items()}
    return [
        f"{what} is missing or no text" for what, text in texts.items() if not isinstance(text, str)
    ]


def _metric_problems(metrics: list[Any]) -> list[str]:
    problems: list[str] = []
    seen: set[str] = set()
    known = {field.name for field in fields(MeasuredMetric)}
    for index, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not METRIC_KEYS <= set(metric) <= known:
            problems.append(f"metric {index} needs exactly name, value, unit and definition")
            continue
        name, value = metric["name"], metric["value"]
        if not all(isinstance(metric[key], str) for key in ("name", "unit", "definition")):
            problems.append(f"metric {index} has a name, unit or definition that is no text")
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            problems.append(f"metric {name!r} is {value!r}, not a finite number")
        if name in seen:
            problems.append(f"metric {name!r} appears twice")
        seen.add(name)
    return problems


def write_rows(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a parquet file of named columns: lists, numpy arrays, pyarrow arrays or tensors.

    NaN, infinity and negative integers of a tensor become null.
    """
    import pyarrow
    from pyarrow import parquet

    arrays = {
        name: _array(values) if hasattr(values, "detach") else values
        for name, values in columns.items()
    }
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(arrays), temporary)


def _array(values: Any) -> Any:
    import pyarrow
    import torch

    values = values.detach().cpu()
    if values.dtype == torch.bool:
        return pyarrow.array(values.numpy())
    if values.is_floating_point():
        return pyarrow.array(values.double().numpy(), mask=~values.isfinite().numpy())
    return pyarrow.array(values.int().numpy(), mask=(values < 0).numpy())
