"""`saelab features RUN`: read every feature of a run's dictionaries into a feature store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from saelab.config import parse_arguments
from saelab.features.config import FeaturesConfig
from saelab.features.schema import STORE_FILE
from saelab.formats.files import whole_folder
from saelab.formats.lock import writer_lock
from saelab.formats.run import dictionary_folders

PROGRAM = "saelab features"
Format = Literal["parquet", "neuronpedia-json"]


@dataclass(frozen=True, kw_only=True)
class FeaturesCommand:
    """Build the feature store of dictionaries, `features.sqlite` in each dictionary's folder.

    A stopped build goes on where it was when the same command is given again; stores that are
    complete are kept.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders (all their dictionaries) or dictionary folders."""
    config: tyro.conf.OmitArgPrefixes[FeaturesConfig] = field(
        default_factory=FeaturesConfig, metadata={"flatten": True}
    )
    """Settings."""
    export: tuple[Format, Path] | None = None
    """Write the features in another format to a folder, and build only stores that are missing."""
    overwrite: bool = False
    """Replace stores that exist."""


CONFIG = FeaturesCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab features`."""
    command = parse_arguments(FeaturesCommand, arguments, program=PROGRAM)
    from saelab.features.pipeline import build_features

    folders = dictionary_folders(command.paths)
    existing = "compare" if command.export is None else "keep"
    existing = "replace" if command.overwrite else existing
    with nullcontext() if command.export is None else writer_lock(command.export[1]):
        build_features(folders, command.config, existing=existing)
        if command.export is not None:
            _export(folders, *command.export, overwrite=command.overwrite)
    show(folders)


def _export(folders: Sequence[Path], kind: Format, out: Path, *, overwrite: bool) -> None:
    from saelab.features.export import export_store

    with whole_folder(out) as whole:
        targets = [whole / folder.resolve().name for folder in folders]
        targets = [whole] if len(folders) == 1 else targets
        files = [
            file.relative_to(whole)
            for folder, target in zip(folders, targets, strict=True)
            for file in export_store(folder / STORE_FILE, kind, target, overwrite=overwrite)
        ]
    for file in files:
        print(f"exported: {out / file}")


def show(folders: Sequence[Path]) -> None:
    """Print one line per store, and where they are."""
    from rich.console import Console
    from rich.table import Table

    from saelab.features.pipeline import store_summary

    table = Table()
    columns = ("features", "tokens", "dead", "rare", "dense")
    table.add_column("dictionary")
    for column in columns:
        table.add_column(column, justify="right")
    for folder in folders:
        summary = store_summary(folder / STORE_FILE)
        counts = [summary["n_features"], summary["n_tokens"]]
        counts += [summary[name] for name in columns[2:]]
        table.add_row(folder.resolve().name, *(f"{count:,}" for count in counts))
    console = Console()
    console.print(table)
    for folder in folders:
        console.print(f"features: {folder / STORE_FILE}", soft_wrap=True, highlight=False)
