"""The same command twice at a time on one folder: one is refused in a line naming the other."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from kills import what_is_wrong
from trials import Child, run
from world import Command, World


def pair_trial(world: World, command: Command, folder: Path, seed: str) -> dict[str, Any]:
    """Start a command a second time while it runs.

    Returns:
        How it ended, "refused" (one named the other) or "apart" (one had ended before the other
        needed the folder), and what is wrong, or None.
    """
    chance = random.Random(seed)
    world.prepare(command, folder)
    first = Child(command.words, folder)
    time.sleep(chance.random() * 0.8 * world.seconds[command.name])
    second = Child(command.words, folder)
    ended = [child.wait() for child in (first, second)]
    for winner, loser, pid in ((0, 1, first.pid), (1, 0, second.pid)):
        if ended[winner].code == 0 and f"process {pid} " in ended[loser].refusal():
            problem = ended[loser].problem()
            problem = problem or what_is_wrong(world, command, folder, ended[winner])
            return {"ended": "refused", "fault": problem}
    problem = ended[1].problem() or what_is_wrong(world, command, folder, ended[0])
    if problem is None and ended[1].code == 2:
        # As it is when all is over, so it had nobody to name.
        alone = run(command.words, folder)
        if alone.refusal() != ended[1].refusal():
            problem = f"the second was refused without naming the first: {ended[1].refusal()}"
    return {"ended": "apart", "fault": problem}
