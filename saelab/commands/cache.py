"""`saelab cache`: a language model's activations to disk; `saelab cache adopt`: those of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from saelab.cache.config import AdoptConfig, HarvestConfig
from saelab.config import option_strings, parse_arguments

ADOPT = "adopt"


@dataclass(frozen=True, kw_only=True)
class CacheCommand:
    """Write a language model's activations to disk, one cache folder per hook point.

    `saelab cache adopt --help` is about activations from elsewhere.
    """

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


@dataclass(frozen=True, kw_only=True)
class AdoptCommand:
    """Write activations from elsewhere as caches, one folder per hook point; no model is needed.

    Files are joined in their order: .npy, .npz, .pt (weights only), .safetensors, .parquet, or a
    folder that `datasets` or SAELens saved; arrays [rows, d_in] or [contexts, positions, d_in].
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Files of activations."""
    out: Path
    """Folder to write to: a cache folder for each hook point in it, and one in its `held_out`."""
    config: Annotated[AdoptConfig, tyro.conf.arg(name="")] = field(
        default_factory=AdoptConfig, metadata={"flatten": True}
    )
    """What of them, and how."""
    resume: bool = False
    """Go on with an interrupted cache."""
    overwrite: bool = False
    """Delete what is there and start over, once all files were checked."""


def completion_values() -> list[str]:
    """Words that may follow `saelab cache`."""
    return [ADOPT]


def completion_options() -> list[str]:
    """Options of `saelab cache` and `saelab cache adopt`."""
    return sorted({*option_strings(CacheCommand), *option_strings(AdoptCommand)})


def main(arguments: Sequence[str]) -> None:
    """Run the command and print what was written and what was left out.

    `adopt` as the first word is the sub-command; a folder of that name is `./adopt`.
    """
    if arguments[:1] == [ADOPT]:
        folders = _adopt(arguments[1:])
    else:
        command = parse_arguments(CacheCommand, arguments, program="saelab cache")
        from saelab.cache.writer import write_caches

        folders = write_caches(
            command.out, command.harvest, resume=command.resume, overwrite=command.overwrite
        )
    from saelab.cache.reader import open_cache
    from saelab.cache.rows import excluded_in_words
    from saelab.text.contexts import what_was_read

    caches = {folder: open_cache(folder, verify=False) for folder in folders}
    for folder, cache in caches.items():
        print(
            f"{folder}: {cache.n_rows:,} rows of width {cache.d_in}; excluded: "
            f"{excluded_in_words(cache.excluded)}"
        )
    # All of one run read the same text.
    for line in what_was_read(caches[folders[0]].manifest.get("text_read", {})):
        print(f"text {line}")


def _adopt(arguments: Sequence[str]) -> list[Path]:
    command = parse_arguments(AdoptCommand, arguments, program=f"saelab cache {ADOPT}")
    from saelab.cache.adopt import adopt_activations

    return adopt_activations(
        command.paths,
        command.out,
        command.config,
        resume=command.resume,
        overwrite=command.overwrite,
    )
