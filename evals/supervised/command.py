"""The command `saelab eval supervised`: find sites, write caches of a task, judge dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult

from .config import SupervisedConfig

PROGRAM = "saelab eval supervised"
TRUTH = "ground truth"
"""Condition that edits are compared with; its own accuracy is always 1."""


@dataclass(frozen=True, kw_only=True)
class SupervisedCommand:
    """Judge dictionaries on a task with known attributes, beside the best that labels can give."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of saved dictionaries, or of runs that hold them. None: the supervised dictionaries
    and the floors alone."""
    find_sites: Path | None = None
    """Search the model's heads for the task's circuit, write the cross-sections to this JSON file,
    for --sites, and a page with heat maps beside it; nothing is judged."""
    circuit_prompts: int = 32
    """Prompts that each head is patched on in that search."""
    write_cache: Path | None = None
    """Write the task's activations at the sites of --sites (at those of --cross-section, where
    given) to one activation cache per site in this folder, for `saelab train task_saes`; nothing is
    judged."""
    cache_prompts: int = 20_000
    """Prompts in each of those caches (split "train")."""
    toys: Path | None = None
    """Run the two toy models and write their page to this folder; nothing is judged."""
    config: tyro.conf.OmitArgPrefixes[SupervisedConfig] = field(
        default_factory=SupervisedConfig, metadata={"flatten": True}
    )
    """Settings."""

    def __post_init__(self) -> None:
        modes = ("find_sites", "write_cache", "toys")
        given = [name for name in modes if getattr(self, name) is not None]
        problems = []
        if len(given) > 1:
            problems.append(f"{', '.join(given)} exclude one another: give one of them")
        if given and self.dictionaries:
            problems.append(f"{given[0]}: nothing is judged with it, so give no dictionaries")
        problems += [
            f"{name}: {getattr(self, name)} is below 2"
            for name in ("circuit_prompts", "cache_prompts")
            if getattr(self, name) < 2
        ]
        if self.write_cache is not None and self.config.sites is None:
            problems.append(
                "write_cache: which sites? give --sites FILE, as --find-sites FILE writes it"
            )
        if problems:
            raise ConfigError(problems)


CONFIG = SupervisedCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab eval supervised`.

    Raises:
        SaelabError: whatever the user can put right; see `run_supervised`.
    """
    command = parse_arguments(SupervisedCommand, arguments, program=PROGRAM)
    from .preparation import find_sites, run_toys, write_caches
    from .suite import REPORT_FILE, run_supervised

    config = command.config
    if command.find_sites is not None:
        page = find_sites(command.find_sites, config, command.circuit_prompts)
        print(f"cross-sections: {command.find_sites}\nheat maps: {page}")
    elif command.write_cache is not None:
        for place in write_caches(command.write_cache, config, command.cache_prompts):
            print(f"cache: {place}")
    elif command.toys is not None:
        print(f"report: {run_toys(command.toys)}")
    else:
        result = run_supervised(command.dictionaries, config)
        show(result, config.folder / REPORT_FILE)


def show(result: EvaluationResult, page: Path) -> None:
    """Print a table per cross-section, the notes, and where the page is."""
    from rich.console import Console
    from rich.table import Table

    scores = result.figure_data["scores"]
    console = Console()
    for section in dict.fromkeys(one["section"] for one in scores):
        table = Table(title=section)
        table.add_column("contender", no_wrap=True)
        for column in ("suff.", "nec.", "edit", "how", "k", "accuracy", "weight"):
            table.add_column(column, no_wrap=True)
        here = [one for one in scores if one["section"] == section]
        for name in dict.fromkeys(one["contender"] for one in here):
            _rows(table, [one for one in here if one["contender"] == name], name)
        console.print(table)
    for note in result.settings["notes"]:
        console.print(note, highlight=False)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)


def _rows(table, scores: list[dict], name: str) -> None:
    """One line of test 1, then one per edit."""
    whole = {one["measure"]: _text(one) for one in scores if not one["edit"] and not one["site"]}
    if "sufficiency" in whole:
        table.add_row(name, whole["sufficiency"], whole["necessity"])
    edits: dict[tuple, dict[str, str]] = {}
    for one in scores:
        if one["edit"] and one["threshold"] is None:
            key = (one["edit"], one["mode"], one["k"], one["prompt_seed"])
            edits.setdefault(key, {})[one["measure"]] = _text(one)
    for (edit, mode, k, _), found in edits.items():
        if mode == TRUTH:
            continue
        shown = "" if k is None else str(k)
        table.add_row(
            name, "", "", edit, mode, shown, found["accuracy"], found.get("weight_removed", "")
        )


def _text(score: dict) -> str:
    return "undefined" if score["value"] is None else f"{score['value']:.3f}"
