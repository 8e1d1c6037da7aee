"""`saelab cache`: write a language model's activations to disk, one cache folder per hook point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from saelab.cache.config import HarvestConfig
from saelab.config import parse_arguments


@dataclass(frozen=True, kw_only=True)
class CacheCommand:
    """Write a language model's activations to disk, one cache folder per hook point."""

    out: tyro.conf.Positional[Path]
    """Folder to write to; each hook point gets a cache folder in it."""
    harvest: Annotated[HarvestConfig, tyro.conf.arg(name="")] = field(
        default_factory=HarvestConfig, metadata={"flatten": True}
    )
    """What to harvest."""
    resume: bool = False
    """Go on with an interrupted cache."""
    overwrite: bool = False
    """Delete what is there and start over."""


CONFIG = CacheCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command and print what was written and what was left out."""
    command = parse_arguments(CacheCommand, arguments, program="saelab cache")
    from saelab.cache.reader import open_cache
    from saelab.cache.writer import write_caches
    from saelab.text.contexts import what_was_read

    folders = write_caches(
        command.out, command.harvest, resume=command.resume, overwrite=command.overwrite
    )
    caches = {folder: open_cache(folder, verify=False) for folder in folders}
    for folder, cache in caches.items():
        excluded = ", ".join(f"{count:,} {reason}" for reason, count in cache.excluded.items())
        print(f"{folder}: {cache.n_rows:,} rows of width {cache.d_in}; excluded: {excluded}")
    # All of one run read the same text.
    for line in what_was_read(caches[folders[0]].manifest.get("text_read", {})):
        print(f"text {line}")
