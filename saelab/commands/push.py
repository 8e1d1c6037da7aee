"""`saelab push DICTIONARY hf:owner/repository`: show what would be uploaded, and upload it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from saelab.config import parse_arguments

PROGRAM = "saelab push"


@dataclass(frozen=True, kw_only=True)
class PushCommand:
    """Upload a dictionary, its evaluation results and a model card to the Hugging Face Hub.

    Without --yes nothing is sent: what would be is shown.
    """

    dictionary: tyro.conf.Positional[Path]
    """Dictionary folder."""
    repository: tyro.conf.Positional[str]
    """Where it goes, as hf:owner/repository/path."""
    yes: bool = False
    """Send it."""
    private: bool = False
    """Make a repository that is not there yet a private one."""


CONFIG = PushCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab push`.

    Raises:
        SaelabError: whatever the user can put right.
    """
    command = parse_arguments(PushCommand, arguments, program=PROGRAM)
    from saelab.dictionary.hub import CARD_FILE, plan_push, push
    from saelab.dictionary.importers.sources import hub_path

    where = hub_path(command.repository)
    upload = plan_push(command.dictionary, where)
    print(f"to hf:{where.repo}/{where.path}: {sum(upload.sizes.values()) / 1e6:,.1f} MB")
    for name, size in upload.sizes.items():
        print(f"  {name} ({size:,} bytes)")
    print(f"  {CARD_FILE} (the model card):\n")
    print(upload.card)
    if not command.yes:
        print("Nothing was sent: add --yes to upload this.")
        return
    print(f"uploaded: {push(command.dictionary, upload, private=command.private)}")
