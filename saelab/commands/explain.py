"""`saelab explain DICTIONARY`: every feature in words, with scores beside those of controls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.explain.config import ExplainConfig
from saelab.formats.run import dictionary_folders

if TYPE_CHECKING:
    from saelab.explain.run import Summary

PROGRAM = "saelab explain"
CONTROLS = ("shuffled", "random")
EXAMPLES = 5
"""Explanations printed: the first that were written, not the best."""


@dataclass(frozen=True, kw_only=True)
class ExplainCommand:
    """Explain features in words, from the feature store in each dictionary's folder.

    Without a language model, by the tokens and contexts they fire on; with --endpoint or --model,
    by what a language model says of their examples. A stopped run goes on where it was when the
    same command is given again: nothing is asked twice.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders (all their dictionaries) or dictionary folders."""
    config: tyro.conf.OmitArgPrefixes[ExplainConfig] = field(
        default_factory=ExplainConfig, metadata={"flatten": True}
    )
    """Settings."""
    dry_run: bool = False
    """Say what it would cost, and ask nothing."""
    read: Path | None = None
    """Take over explanations from Neuronpedia's file, a folder of them, or delphi's results, in
    place of making any."""
    write: Path | None = None
    """Write the best explanation of each feature to this folder, as delphi does, and make none."""

    def __post_init__(self) -> None:
        if self.read is not None and self.write is not None:
            raise ConfigError("read and write are two commands: give one of them")


CONFIG = ExplainCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab explain`."""
    command = parse_arguments(ExplainCommand, arguments, program=PROGRAM)
    config = command.config
    from saelab.explain.cost import estimated_cost
    from saelab.explain.run import answering, explain_dictionary

    folders = dictionary_folders(command.paths)
    if command.read is not None or command.write is not None:
        exchange(folders, command.read, command.write)
        return
    with ExitStack() as stack:
        model = stack.enter_context(answering(config.asked)) if config.asks_a_model else None
        for folder in folders:
            if model is None and command.dry_run:
                print(f"{folder}: nothing is asked of any language model")
            elif model is not None:
                cost = estimated_cost(folder, config, model)
                print(f"{folder}: {cost}, of {model.name}", flush=True)
            if not command.dry_run:
                show(folder, explain_dictionary(folder, config, model))


def exchange(folders: Sequence[Path], source: Path | None, out: Path | None) -> None:
    """Read or write explanations in other programs' formats, and print how many.

    Raises:
        ConfigError: several dictionaries, for which one file or folder is too few.
        ArtifactError: nothing to read or to write, or explanations of another dictionary.
    """
    from saelab.explain.exchange import export_delphi, import_explanations
    from saelab.features.schema import LABEL_FILE

    if len(folders) != 1:
        raise ConfigError(f"--read and --write take one dictionary, not {len(folders)}: name it")
    (folder,) = folders
    if out is not None:
        print(f"written: {export_delphi(folder, out):,} explanations to {out}")
    if source is not None:
        imported = import_explanations(folder, source)
        print(f"read: {imported.written:,} explanations into {folder / LABEL_FILE}")
        if imported.refused:
            print(f"left out: {imported.refused:,}, the first because {imported.first_problem}")


def show(folder: Path, summary: Summary) -> None:
    """Print what became of a run: counts, and mean scores beside their controls'."""
    from rich.console import Console
    from rich.table import Table

    from saelab.features.label_content import SCORE_DEFINITIONS, TOO_WEAK
    from saelab.features.schema import LABEL_FILE

    table = Table("score")
    for column in ("features", "mean", "with controls", "mean", *CONTROLS):
        table.add_column(column, justify="right")
    for name in SCORE_DEFINITIONS:
        scores = summary.scores_named(name)
        controlled = [score for score in scores if None not in (score.shuffled, score.random)]
        if scores:
            means = [_mean([score.value for score in some]) for some in (scores, controlled)]
            controls = [
                _mean([getattr(score, which) for score in controlled]) for which in CONTROLS
            ]
            counts = [f"{len(some):,}" for some in (scores, controlled)]
            table.add_row(name, counts[0], means[0], counts[1], means[1], *controls)
    console = Console()
    if table.row_count:
        console.print(table)
    tally = summary.tally
    print(f"explained: {len(summary.explanations):,} of {summary.chosen:,} features", end="")
    print(f", {summary.without_examples:,} had no example" if summary.without_examples else "")
    if tally.asked or tally.known:
        print(
            f"asked: {tally.asked:,} questions, {tally.known:,} answered before; "
            f"{tally.refused:,} refusals, {tally.unreadable:,} answers that could not be read; "
            f"{tally.prompt_tokens:,} tokens read, {tally.completion_tokens:,} written"
        )
    for explanation in summary.explanations[:EXAMPLES]:
        print(f"  {explanation.feature}: {explanation.text}")
    if any(explanation.method == TOO_WEAK for explanation in summary.explanations):
        print("these texts show how it works: the embedded model is too weak to explain features")
    print(f"explanations: {folder / LABEL_FILE}")


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else ""
