"""What every measured program shares: arguments, batches, timing, memory, the JSON it prints.

Each contestant (a peer in the peers' environment, or saelab in its own) is one module run as
`python -m peers.NAME step|quality ...` from this folder, in a process of its own, so that its
memory is its own too. Only torch and safetensors are imported here: this file runs in both
environments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ROWS_KEY = "activations"
STEP_BATCHES = 4  # distinct batches a step measurement cycles through


def main(
    step: Callable[[argparse.Namespace], dict[str, Any]],
    quality: Callable[[argparse.Namespace], dict[str, Any]] | None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Parse the arguments, run the chosen mode, print its result as one JSON line on stdout.

    Whatever a library prints while it works goes to stderr.
    """
    parser = argparse.ArgumentParser()
    modes = parser.add_subparsers(dest="mode", required=True)
    timed = modes.add_parser("step", help="time one complete training step")
    timed.add_argument("--d-in", type=int, required=True)
    timed.add_argument("--rows", type=Path, help="safetensors of real rows; Gaussian without it")
    timed.add_argument("--warmup", type=int, default=2, help="steps before the clock starts")
    timed.add_argument("--repeats", type=int, default=5, help="steps timed")
    trained = modes.add_parser("quality", help="train on rows, save the weights, report FVU")
    trained.add_argument("--rows", type=Path, required=True, help="training rows")
    trained.add_argument("--held-out", type=Path, required=True, help="rows FVU is measured on")
    trained.add_argument("--rows-limit", type=int, help="train on the first this many rows")
    trained.add_argument("--steps", type=int, required=True)
    trained.add_argument("--lr", type=float, help="instead of the library's default")
    trained.add_argument("--order-seed", type=int, default=0, help="seed of the row order")
    trained.add_argument("--out", type=Path, required=True, help="safetensors to write")
    for mode in (timed, trained):
        mode.add_argument("--d-sae", type=int, required=True)
        mode.add_argument("--k", type=int, required=True)
        mode.add_argument("--batch", type=int, required=True)
        mode.add_argument("--threads", type=int, default=2)
        mode.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
        if add_options:
            add_options(mode)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = step if arguments.mode == "step" else quality
    if run is None:
        parser.error("this contestant has no quality mode")
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        result = run(arguments)
    print(json.dumps({**result, "wall_seconds": time.perf_counter() - start}))


def layer_arguments() -> argparse.Namespace:
    """The shape of a cross-layer transcoder's step, of which threads and seed are set."""
    parser = argparse.ArgumentParser()
    for name in ("layers", "d", "size", "k", "rows", "steps", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return given


def load_rows(path: Path, limit: int | None = None) -> Tensor:
    """Read at most `limit` rows [n, d_in] in the dtype they were stored in (bf16 as a rule)."""
    with safe_open(str(path), framework="pt") as file:
        return file.get_slice(ROWS_KEY)[:limit]


def step_batches(arguments: argparse.Namespace) -> list[Tensor]:
    """Prepare the float32 batches [batch, d_in] a step measurement cycles through."""
    generator = torch.Generator().manual_seed(0)
    size = (STEP_BATCHES, arguments.batch, arguments.d_in)
    if arguments.rows is None:
        return list(torch.randn(size, generator=generator))
    rows = load_rows(arguments.rows)
    if rows.shape[1] != arguments.d_in:
        raise SystemExit(
            f"{arguments.rows.name}: rows are {rows.shape[1]} wide, not {arguments.d_in}"
        )
    picked = torch.randint(len(rows), size[:2], generator=generator)
    return [rows[index].float() for index in picked]


def training_batches(arguments: argparse.Namespace) -> Iterator[Tensor]:
    """Endless float32 batches [batch, d_in]: passes over the rows, each in a new seeded order.

    A batch may span two passes, so no row is left out.
    """
    rows = load_rows(arguments.rows, arguments.rows_limit)
    for index in training_order(len(rows), arguments):
        yield rows[index].float()


def training_order(n_rows: int, arguments: argparse.Namespace) -> Iterator[Tensor]:
    """Endless row indices [batch] in the order of `training_batches`."""
    generator = torch.Generator().manual_seed(arguments.order_seed)
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < arguments.batch:
            waiting = torch.cat([waiting, torch.randperm(n_rows, generator=generator)])
        yield waiting[: arguments.batch]
        waiting = waiting[arguments.batch :]


class Clock:
    """Times steps and their memory, from the moments at which a library asks for a batch.

    From one request to the next is one complete step of whatever the library does. Make the clock
    when the batches are there and the library is imported, but before it builds anything.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.warmup, self.repeats = arguments.warmup, arguments.repeats
        self.moments: list[float] = []
        self.memory_before = resident_memory()
        reset_peak_memory()

    @property
    def steps(self) -> int:
        """How many batches to serve: the last only closes the last timed step."""
        return self.warmup + self.repeats + 1

    def serve(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """Serve the batches in turn, noting when each was asked for."""
        for batch in islice(cycle(batches), self.steps):
            self.tick()
            yield batch

    def tick(self) -> None:
        """Note that the next batch was asked for now."""
        self.moments.append(time.perf_counter())

    def result(self) -> dict[str, Any]:
        """Give seconds per step and the peak resident memory (MiB) in total and above the start."""
        moments = self.moments[self.warmup :]
        seconds = [after - before for before, after in pairwise(moments)]
        peak = peak_memory()
        return {
            "seconds": seconds[: self.repeats],
            "median_seconds": statistics.median(seconds[: self.repeats]),
            "min_seconds": min(seconds[: self.repeats]),
            "peak_mib": peak,
            "step_mib": peak - self.memory_before,
        }


def resident_memory() -> float:
    """Resident memory of this process now, in MiB."""
    return _status_mib("VmRSS") or peak_memory()


def peak_memory() -> float:
    """Peak resident memory of this process since `reset_peak_memory`, in MiB.

    `ru_maxrss` is only the fallback: a child inherits it from the process that started it.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status_mib("VmHWM") or usage / (1024**2 if sys.platform == "darwin" else 1024)


def reset_peak_memory() -> None:
    """Forget the peak so far, such as that of the imports, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_mib(field: str) -> float | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return None


@torch.no_grad()
def held_out_fvu(reconstruct: Callable[[Tensor], Tensor], path: Path, *, every: int = 1) -> float:
    """FVU of `reconstruct` on stored rows: pooled squared error over that of the rows' mean.

    `every`: one row of so many is taken.
    """
    rows = load_rows(path)[::every]
    mean = rows.double().mean(dim=0)
    error = variance = 0.0
    for chunk in rows.split(4096):
        x = chunk.float()
        error += (x - reconstruct(x)).double().square().sum().item()
        variance += (x.double() - mean).square().sum().item()
    return error / variance


def save_weights(
    path: Path,
    *,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    b_dec: Tensor,
    k: int,
    subtract_b_dec: bool,
) -> None:
    """Write a TopK autoencoder in the layout `sections.quality` scores alike for all.

    Codes are the ReLU of the k largest pre-activations `x @ W_enc + b_enc`, with `x - b_dec` for
    `x` where `subtract_b_dec`; the reconstruction is `codes @ W_dec + b_dec`.
    """
    weights = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            **{name: weight.detach().float().contiguous() for name, weight in weights.items()},
            "k": torch.tensor(k),
            "subtract_b_dec": torch.tensor(subtract_b_dec),
        },
        str(path),
    )
