"""`saelab report RESULT…`: write the HTML page of results, whatever suite they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from saelab.config import parse_arguments
from saelab.errors import ArtifactError, ConfigError

PROGRAM = "saelab report"


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write the HTML page of evaluation results, drawn from the JSON files alone."""

    results: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Results such as `core.json`, or folders with results: dictionaries, or their `evals`."""
    out: Path | None = None
    """Where the page of a single result goes. None: beside each result."""


CONFIG = ReportCommand


def main(arguments: Sequence[str]) -> None:
    """Write a page for each result.

    Raises:
        ConfigError: no result was given, or several for one page.
        ArtifactError: a file that is no intact evaluation result, or a folder without one.
    """
    command = parse_arguments(ReportCommand, arguments, program=PROGRAM)
    paths = [path for given in command.results for path in _results_in(given)]
    if not paths:
        raise ConfigError(f"no result was given: type `{PROGRAM} FILE.json` or `{PROGRAM} FOLDER`")
    if command.out is not None and len(paths) > 1:
        raise ConfigError(
            f"out: {command.out} is one page, but {len(paths)} results were given: leave --out "
            "away, and each page goes beside its result"
        )
    from saelab.formats.evaluation_result import read_evaluation_result
    from saelab.report.result_page import write_result_page

    results = [read_evaluation_result(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        print(f"report: {write_result_page(command.out or path.with_suffix('.html'), result)}")


def _results_in(given: Path) -> list[Path]:
    """A file, or the results in a folder and in its `evals`."""
    if not given.is_dir():
        return [given]
    from saelab.formats.evaluation_result import RESULT_KINDS
    from saelab.formats.files import read_json

    def is_result(path: Path) -> bool:
        content = read_json(path)
        return isinstance(content, dict) and content.get("kind") in RESULT_KINDS

    candidates = [*sorted(given.glob("*.json")), *sorted(given.glob("evals/*.json"))]
    results = [path for path in candidates if is_result(path)]
    if not results:
        raise ArtifactError(
            f"{given} holds no evaluation result, nor does its evals/ folder: make one with "
            f"`saelab eval core {given}`"
        )
    return results
