"""Commands that are killed at random moments and typed again, until they leave what they should."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from equal import differences, fingerprint
from trials import Child, Outcome, type_again
from world import Command, World

AGAIN = 0.4
"""Chance that a command is killed once more when it is typed again."""


def kill_trial(world: World, command: Command, folder: Path, seed: str) -> dict[str, Any]:
    """Kill a command, type it again, and so on; compare what is left with an undisturbed run.

    Returns:
        The number of kills, and what is wrong, or None.
    """
    chance = random.Random(seed)
    world.prepare(command, folder)
    kills, words = 0, command.words
    while True:
        outcome = _killed(words, folder, chance.random() * 1.05 * world.seconds[command.name])
        kills += outcome.killed
        if outcome.code == 2 and "--resume" in outcome.refusal() and words == command.words:
            words = [*words, "--resume"]
        elif not outcome.killed or chance.random() > AGAIN:
            break
        else:
            words = command.words
    last = type_again(command.words, folder)
    return {"kills": kills, "fault": what_is_wrong(world, command, folder, last)}


def what_is_wrong(
    world: World, command: Command, folder: Path, last: Outcome, *, besides: str = ""
) -> str | None:
    """What is wrong with a command that was left to end; None: it left what it should.

    `besides` is a file that may be another.
    """
    problem = last.problem()
    found, expected = fingerprint(folder), world.expected[command.name]
    if besides in found:
        expected = expected | {besides: found[besides]}
    differing = differences(found, expected)
    # Where the kill came after the last file, the command may say that everything is there.
    if problem is None and last.code == 2 and differing:
        problem = f"typed again it is refused ({'; '.join(differing[:4])}): {last.refusal()}"
    if problem is None and differing:
        problem = f"other results: {'; '.join(differing[:4])}"
    return problem


def _killed(words: list[str], folder: Path, after: float) -> Outcome:
    child = Child(words, folder)
    deadline = time.monotonic() + after
    while child.running() and time.monotonic() < deadline:
        time.sleep(0.001)
    child.kill()
    return child.wait()
