"""Kills, damaged files, missing room, and second writers, on every command and every kind of file.

`python tests/faults/campaign.py` runs the whole (some 30 minutes on two cores), writes the counts
to `tests/faults/counts.json` and the table of `docs/reliability.md`; `--small` runs a sample and
only prints. Exit code 1: a fault was found; each is printed with the seed that shows it again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from artifacts import ARTIFACTS, UNFINISHED, make_by_hand, stop_halfway
from kills import kill_trial
from limits import LACKS, LITTLE_MEMORY, limit_trial, mount_disk
from mending import mend_trial, mendable
from mutations import mutate
from pairs import pair_trial
from table import write_table
from trials import die_with_parent
from world import COMMANDS, STOOD_IN, Command, World

HERE = Path(__file__).resolve().parent
COUNTS = HERE / "counts.json"
SMALL = ("cache", "train", "eval core", "features", "synthetic")
"""Commands of the small campaign."""


@dataclass(frozen=True)
class Size:
    """How much is tried."""

    kills: int
    """Kills of each command, at least."""
    mutations: int
    """Damaged copies of each artifact."""
    mendings: int
    """Damaged files that each command has to go on with or replace."""
    limits: int
    """Times that each command lacks each thing; 0: each thing is lacked once by some command."""
    pairs: int
    """Pairs of each command."""


WHOLE = Size(kills=20, mutations=500, mendings=12, limits=2, pairs=13)
SAMPLE = Size(kills=1, mutations=12, mendings=1, limits=0, pairs=1)

Task = Callable[[Path], dict[str, Any]]


def kill_all(world: World, name: str, least: int, seed: int, work: Path) -> dict[str, Any]:
    """Kill a command as often as asked."""
    command = next(command for command in world.commands if command.name == name)
    kills, trials, faults = 0, 0, []
    while kills < least and trials < 4 * least:
        found = kill_trial(world, command, work / "trial", f"{seed}/{name}/{trials}")
        kills += found["kills"]
        if found["fault"]:
            how = f"{name}, seed {seed}/{name}/{trials}"
            faults.append({"what": found["fault"], "how": how})
        trials += 1
    return {
        "part": "kills",
        "of": name,
        "counts": {"kills": kills, "runs": trials},
        "faults": faults,
    }


def mutate_all(world: World, index: int, count: int, seed: int, work: Path) -> dict[str, Any]:
    """Damage copies of an artifact."""
    artifact = ARTIFACTS[index]
    name = f"{seed}/{artifact.kind}/{artifact.files.split()[0]}"
    counts, faults = mutate(world, artifact, work, count, name)
    of = {"part": "mutations", "of": artifact.kind}
    return {**of, "counts": {"damaged": count, **counts}, "faults": faults}


def try_all(
    part: str, of: str, count: int, trial: Callable[[str], dict[str, Any]], seed: int
) -> dict[str, Any]:
    """Run one kind of trial several times and count how they ended."""
    counts: Counter[str] = Counter()
    faults = []
    for index in range(count):
        found = trial(f"{seed}/{of}/{index}")
        counts[found["ended"]] += 1
        if found["fault"]:
            faults.append({"what": found["fault"], "how": f"{of}, seed {seed}/{of}/{index}"})
    return {"part": part, "of": of, "counts": {"trials": count, **counts}, "faults": faults}


def tasks(world: World, size: Size, seed: int, parts: Sequence[str]) -> list[Task]:
    """Everything there is to try, each for a worker's folder."""
    names = [command.name for command in world.commands]
    listed: dict[str, list[Task]] = {
        "kills": [partial(kill_all, world, name, size.kills, seed) for name in names],
        "mutations": [
            partial(mutate_all, world, index, size.mutations, seed)
            for index, artifact in enumerate(ARTIFACTS)
            if world.result(artifact.of).exists()
        ],
        "mending": [
            lambda work, c=command, h=halfway: try_all(
                "mending",
                f"{'unfinished' if h else 'finished'} {c.name}",
                size.mendings,
                lambda s: mend_trial(world, c, work / "trial", s, halfway=h),
                seed,
            )
            for command, halfway in mendable(world)
        ],
        "limits": [
            lambda work, c=command, k=lack: _limits(world, c, k, max(1, size.limits), seed, work)
            for command, lack in _lacking(world, size)
        ],
        "pairs": [
            lambda work, c=command: try_all(
                "pairs",
                c.name,
                size.pairs,
                lambda s: pair_trial(world, c, work / "trial", s),
                seed,
            )
            for command in world.commands
        ],
    }
    return [task for part in parts for task in listed[part]]


def _lacking(world: World, size: Size) -> list[tuple[Command, str]]:
    """Who lacks what: everybody everything, or in a sample everything somebody."""
    pairs = [
        (command, lack)
        for command in world.commands
        for lack in LACKS
        # A fresh process knows nothing of the small things put in place of the embedded ones.
        if lack != LITTLE_MEMORY or command.name not in STOOD_IN
    ]
    return pairs if size.limits else pairs[:: len(LACKS) + 1]


def _limits(world: World, command: Command, lack: str, count: int, seed: int, work: Path) -> Any:
    disk = work / "disk"
    if not disk.exists() and not mount_disk(disk):
        return {"part": "limits", "of": lack, "counts": {"not possible here": count}, "faults": []}
    found = try_all(
        "limits",
        f"{command.name}, {lack}",
        count,
        lambda s: limit_trial(world, command, disk, s, lack),
        seed,
    )
    return found | {"of": lack}


def with_needed(names: Sequence[str]) -> tuple[Command, ...]:
    """Commands of these names, and those whose results they read."""
    wanted = set(names)
    for command in reversed(COMMANDS):
        if command.name in wanted and command.after:
            wanted.add(command.after)
    return tuple(command for command in COMMANDS if command.name in wanted)


PARTS = ("kills", "mutations", "mending", "limits", "pairs")


def work_off(tasks: Sequence[Task], work: Path, workers: int) -> list[dict[str, Any]]:
    """Run tasks in several processes, each taking the next one; what they found."""
    queue = os.pipe()
    for index in range(len(tasks)):
        os.write(queue[1], index.to_bytes(2, "big"))
    os.close(queue[1])
    pids = []
    for number in range(workers):
        pid = os.fork()
        if pid == 0:
            _take(tasks, queue[0], work / f"worker-{number}")
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        raise SystemExit(f"workers of the campaign failed: {codes}")
    lines = [
        line for file in sorted(work.glob("*.jsonl")) for line in file.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


def _take(tasks: Sequence[Task], queue: int, work: Path) -> None:
    code = 1
    try:
        die_with_parent()
        work.mkdir(parents=True, exist_ok=True)
        with work.with_suffix(".jsonl").open("w") as out:
            while index := os.read(queue, 2):
                start = time.monotonic()
                found = tasks[int.from_bytes(index, "big")](work)
                seconds = time.monotonic() - start
                print(json.dumps(found | {"seconds": round(seconds, 1)}), file=out, flush=True)
                for fault in found["faults"]:
                    print(f"FAULT {found['part']}: {fault['how']}: {fault['what']}", flush=True)
                counts = ", ".join(f"{name} {n}" for name, n in found["counts"].items())
                print(f"{found['part']}, {found['of']}: {counts} ({seconds:.0f} s)", flush=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def summary(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """Counts by part and by what was tried, with the number of faults."""
    table: dict[str, dict[str, Counter[str]]] = {}
    for one in found:
        counts = table.setdefault(one["part"], {}).setdefault(one["of"], Counter())
        counts.update(one["counts"])
        counts["faults"] += len(one["faults"])
    return {
        part: {of: dict(table[part][of]) for of in sorted(table[part])}
        for part in PARTS
        if part in table
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and report; the number of faults, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a sample, in half a minute")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--commands", nargs="+", help="these alone, and what they need")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the trials")
    parser.add_argument("--work", type=Path, help="folder; its content is lost")
    parser.add_argument("--out", type=Path, help="JSON file of the counts")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    size = SAMPLE if given.small else WHOLE
    size = Size(**{name: n and max(1, round(n * given.scale)) for name, n in vars(size).items()})
    # Memory for a disk: what is flushed costs nothing, and no disk is worn.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as temporary:
        work = Path(given.work or temporary)
        commands = COMMANDS
        wanted = given.commands or (SMALL if given.small else None)
        if wanted:
            commands = with_needed(wanted)
        world = World(work / "world", commands).build(
            twice="kills" in given.parts and not given.small
        )
        make_by_hand(world.result("by hand"))
        for name in UNFINISHED:
            if any(command.name == name for command in commands):
                stop_halfway(world, name)
        print(f"the world took {time.monotonic() - started:.0f} s", flush=True)
        found = work_off(tasks(world, size, given.seed, given.parts), work, given.workers)
    counts = summary(found)
    faults = [
        f"{one['part']}: {fault['how']}: {fault['what']}"
        for one in found
        for fault in one["faults"]
    ]
    seconds = round(time.monotonic() - started)
    report = {"seed": given.seed, "seconds": seconds, "counts": counts, "faults": faults}
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
        if given.out.resolve() == COUNTS:
            write_table(report)
    print(f"{len(faults)} faults in {seconds} s", flush=True)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
