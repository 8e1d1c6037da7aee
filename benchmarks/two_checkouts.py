"""Step, harvest and features of two checkouts, in turn in one run: did a change cost speed?

    python benchmarks/two_checkouts.py BEFORE AFTER [--rounds 5]

Each checkout has its own `.venv` (`make setup`). Printed are the medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

WORK = {
    "step": "own.saelab_topk step --d-in 576 --d-sae 8192 --k 32 --batch 2048 --repeats 3",
    "harvest": "own.harvest saelab --dtype float32 --tokens 8192 --out OUT",
    "features": "own.features scale --tokens 131072 --d-sae 4096 --out OUT",
}
SECONDS = ("seconds_per_step", "median_seconds", "seconds")
"""Where each one's JSON says its time."""


def seconds(checkout: Path, words: str) -> float:
    """Run one measurement in a checkout.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory() as out:
        arguments = [word.replace("OUT", f"{out}/work") for word in words.split()]
        done = subprocess.run(
            [checkout / ".venv" / "bin" / "python", "-m", *arguments, "--threads", "1"],
            cwd=checkout / "benchmarks",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return next(_number(result[name]) for name in SECONDS if name in result)


def _number(value: float | list[float]) -> float:
    return statistics.median(value) if isinstance(value, list) else float(value)


def main() -> None:
    """Measure and print a row for each piece of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs="*", default=list(WORK))
    arguments = parser.parse_args()
    print("| | before, s | after, s | ratio |\n|---|---:|---:|---:|")
    for name in arguments.work:
        times: dict[str, list[float]] = {"before": [], "after": []}
        for turn in range(arguments.rounds):
            order = ("before", "after") if turn % 2 == 0 else ("after", "before")
            for which in order:
                folder = getattr(arguments, which).resolve()
                times[which].append(seconds(folder, WORK[name]))
        before, after = (statistics.median(times[which]) for which in ("before", "after"))
        print(f"| {name} | {before:.3f} | {after:.3f} | {after / before:.3f} |", flush=True)


if __name__ == "__main__":
    main()
