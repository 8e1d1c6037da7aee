"""What the sections share: settings, results, running a contestant, facts of the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent
PEERS = {
    "sae-lens": "peers.sae_lens_topk",
    "eai-sparsify": "peers.sparsify_topk",
    "dictionary-learning": "peers.dictionary_learning_topk",
}


class BenchmarkError(Exception):
    """A measurement cannot be made; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run of the benchmarks was asked for."""

    quick: bool
    """Smaller sizes and fewer repeats: shows that everything runs, not how fast."""
    rounds: int
    """Times each contestant is run, in turn with the others."""
    threads: int
    """Threads each contestant computes with."""
    peers: tuple[str, ...]
    """Peers to measure, names of `PEERS`."""
    peers_python: Path
    """Interpreter of the peers' environment."""
    work: Path
    """Folder for caches and weights, kept between runs."""
    progress: Callable[[str], None]
    """Told what is being measured."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise and what was measured."""

    what: str
    measured: float
    target: float
    at_least: bool
    """True: measured must reach the target; False: it must not exceed it."""

    @property
    def met(self) -> bool:
        """Whether the promise holds."""
        return self.measured >= self.target if self.at_least else self.measured <= self.target


@dataclass(kw_only=True)
class SectionResult:
    """A table, the promises checked against it, and the raw numbers."""

    title: str
    notes: list[str]
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    raw: Any = None

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        checks = [{**vars(check), "met": check.met} for check in self.checks]
        return {**vars(self), "checks": checks}


def own_python() -> Path:
    """The interpreter saelab is measured with: the one running this."""
    return Path(sys.executable)


def require_peers(python: Path) -> None:
    """Stop before anything is measured if the peers' environment is missing.

    Raises:
        BenchmarkError: there is no such interpreter.
    """
    if not python.is_file():
        raise BenchmarkError(
            f"no peers' environment at {python.parent.parent}: create it with `make peers` (or "
            "benchmarks/setup_peers.sh), name another interpreter with --peers-python, or leave "
            "the peers out with --peers none"
        )


def run_contestant(python: Path, module: str, *options: str | int | Path | None) -> dict[str, Any]:
    """Run a contestant in its own process and return the JSON line it prints last.

    Options that are None are dropped together with the flag before them.

    Raises:
        BenchmarkError: it failed; the end of its error output is in the message.
    """
    command = [str(python), "-m", module, *_flatten(options)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        command, check=False, cwd=BENCHMARKS, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise BenchmarkError(f"{module} failed with exit code {done.returncode}:\n{tail}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _flatten(options: Sequence[str | int | Path | None]) -> list[str]:
    flat: list[str] = []
    for option in options:
        if option is None:
            flat.pop()
        else:
            flat.append(str(option))
    return flat


def in_turn(
    contestants: dict[str, Callable[[], dict[str, Any]]], settings: Settings, what: str
) -> dict[str, list[dict[str, Any]]]:
    """Run all contestants in turn, A B C A B C, so that a slow minute hits all alike."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for turn in range(settings.rounds):
        for name, run in contestants.items():
            settings.progress(f"{what}: {name} (round {turn + 1} of {settings.rounds})")
            results[name].append(run())
    return results


def median_of(results: list[dict[str, Any]], key: str) -> float:
    """Median over the rounds of one number."""
    return statistics.median(result[key] for result in results)


def machine_facts(threads: int) -> dict[str, Any]:
    """What the numbers depend on, without anything that names the machine."""
    return {
        "cpu": _cpu_model(),
        "cpu_flags": _cpu_flags(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(_memory_gib(), 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "saelab": _version("saelab"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_info(field_name: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    values = (line.split(":", 1)[1].strip() for line in lines if line.startswith(field_name))
    return next(values, None)


def _cpu_model() -> str:
    name = _cpu_info("model name") or platform.processor() or "unknown"
    family, model = _cpu_info("cpu family"), _cpu_info("model\t")
    return f"{name} (family {family}, model {model})" if family else name


def _cpu_flags() -> list[str]:
    deciding = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    present = (_cpu_info("flags") or "").split()
    return [flag for flag in deciding if flag in present]


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
