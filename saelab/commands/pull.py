"""`saelab pull hf:owner/repository/path`: fetch a dictionary of saelab's from the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from saelab.config import parse_arguments

PROGRAM = "saelab pull"


@dataclass(frozen=True, kw_only=True)
class PullCommand:
    """Fetch a dictionary that saelab saved from the Hugging Face Hub, and check it."""

    repository: tyro.conf.Positional[str]
    """Where it is, as hf:owner/repository/path@revision."""
    out: Path
    """Folder to write, which must not exist."""


CONFIG = PullCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab pull`.

    Raises:
        SaelabError: whatever the user can put right.
    """
    command = parse_arguments(PullCommand, arguments, program=PROGRAM)
    from saelab.dictionary.hub import pull
    from saelab.dictionary.importers.sources import hub_path

    saved = pull(hub_path(command.repository), command.out)
    print(f"pulled: {saved.folder} ({saved.dictionary.d_sae:,} latents at {saved.site})")
