"""Damaged work that a command goes on with or replaces: never another result, never stuck.

Of a command that was stopped halfway a file is damaged and the command typed again: it leaves what
an undisturbed run does, or refuses in a line; then, and on finished results, --overwrite mends it.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from artifacts import UNFINISHED
from damage import choose, damage
from kills import what_is_wrong
from trials import run, type_again
from world import Command, World

NOT_DAMAGED = (".html", ".lock")
FINISHED = (
    "cache",
    "cache adopt",
    "train",
    "tune",
    "eval core",
    "eval consistency",
    "eval dark-matter",
    "eval steering",
    "features",
    "compare",
    "import",
    "synthetic",
    "planted",
    "eval recovery",
    "eval supervised",
    "quickstart",
)
"""Commands with --overwrite, whose finished results are damaged."""


def mend_trial(
    world: World, command: Command, folder: Path, seed: str, halfway: bool
) -> dict[str, Any]:
    """Damage a file that a command wrote, and do what its refusal says.

    Returns:
        How it ended, "went on" or "replaced", and what is wrong, or None.
    """
    chance = random.Random(seed)
    if folder.exists():
        shutil.rmtree(folder)
    source = world.result(f"unfinished {command.name}" if halfway else command.name)
    shutil.copytree(source, folder, symlinks=True)
    path = chance.choice(_written(world, command, source))
    done = damage(folder / path, choose(chance), chance)
    if halfway:
        last = type_again(command.words, folder)
        problem = last.problem()
        if last.code == 0 or problem:
            # Curves before the checkpoint are nowhere else.
            besides = path if path.endswith("metrics.jsonl") else ""
            problem = problem or what_is_wrong(world, command, folder, last, besides=besides)
            return {"ended": "went on", "fault": problem and f"{path}: {done}: {problem}"}
    last = run([*command.words, "--overwrite"], folder)
    problem = last.problem()
    if problem is None and last.code:
        problem = f"--overwrite does not help: {last.refusal()}"
    problem = problem or what_is_wrong(world, command, folder, last)
    return {"ended": "replaced", "fault": problem and f"{path}: {done}: {problem}"}


def _written(world: World, command: Command, source: Path) -> list[str]:
    """The command's own files in a folder, pages left out."""
    before = world.result(command.after) if command.after else None
    return [
        str(path.relative_to(source))
        for path in sorted(source.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and not any(parent.is_symlink() for parent in path.parents)
        and path.suffix not in NOT_DAMAGED
        and not (before and (before / path.relative_to(source)).exists())
    ]


def mendable(world: World) -> list[tuple[Command, bool]]:
    """Commands, and whether they were stopped halfway."""
    by_name = {command.name: command for command in world.commands}
    halfway = [(by_name[name], True) for name in UNFINISHED if name in by_name]
    return halfway + [(by_name[name], False) for name in FINISHED if name in by_name]
