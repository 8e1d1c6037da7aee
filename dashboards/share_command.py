"""`saelab share`: a feature, or a list of them, as one HTML file that opens anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.formats.files import write_bytes

from .command import DEFAULT_ROOTS, problems_of


@dataclass(frozen=True, kw_only=True)
class ShareCommand:
    """Write a feature's page, or a list's, as one HTML file without scripts.

    Example: `saelab share runs --feature 12 --out feature.html`.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = DEFAULT_ROOTS
    """Folders with runs or dictionaries, or single feature stores."""
    out: Path
    """File to write."""
    feature: int | None = None
    """Index of the feature."""
    dictionary: str = ""
    """Name of its dictionary, with its run's before it where several have it."""
    list_name: str | None = None
    """Name of the list, instead of a feature."""
    overwrite: bool = False
    """Replace a file that exists."""

    def __post_init__(self) -> None:
        problems = problems_of(self.runs, 0)
        if (self.feature is None) == (self.list_name is None):
            problems.append("give --feature or --list-name, one of the two")
        if self.out.exists() and not self.overwrite:
            problems.append(f"{self.out} exists already: add --overwrite to replace it")
        if problems:
            raise ConfigError(problems)


CONFIG = ShareCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab share`."""
    command = parse_arguments(ShareCommand, arguments, program="saelab share")
    page = _page(command)
    write_bytes(command.out, page.encode("utf-8", "replace"))
    print(f"shared: {command.out}")


def _page(command: ShareCommand) -> str:
    from saelab.features.label_content import prominence
    from saelab.features.lists import shelf_of

    from .run_index import scan
    from .stores import labels_of, open_store
    from .widgets.cards import list_html
    from .widgets.feature_html import feature_html

    index = scan(command.runs)
    if command.feature is None:
        lists, problems = shelf_of(command.runs).all()
        chosen = next((each for each in lists if each.name == command.list_name), None)
        if chosen is None:
            names = ", ".join(repr(each.name) for each in lists) or "none"
            raise ConfigError([f"there is no list {command.list_name!r}: {names}", *problems])
        return list_html(chosen, index)
    names = {f"{entry.run_id}/{entry.name}": entry for entry in index.dictionaries}
    entries = [
        entry
        for name, entry in names.items()
        if entry.store_path and command.dictionary in ("", name, entry.name)
    ]
    if len(entries) != 1 or (path := entries[0].store_path) is None:
        raise ConfigError(
            f"{len(entries)} dictionaries with a feature store are meant: name one by "
            f"--dictionary; there are {', '.join(names) or 'none'}"
        )
    store = open_store(path)
    labels = [label for label in labels_of(store) if label.feature == command.feature]
    labels.sort(key=prominence, reverse=True)
    return feature_html(entries[0].name, store, command.feature, labels)
