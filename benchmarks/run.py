"""Measure saelab beside its peers and write the tables to `benchmarks/results/`.

    python benchmarks/run.py [--sections quality,step,methods,…] [--quick]

What is compared is measured in turn in the same run. Close other programs first.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

from sections.common import (
    BENCHMARKS,
    PEERS,
    BenchmarkError,
    Settings,
    machine_facts,
    require_peers,
)
from sections.report import SECTIONS, section_text, write_page, write_section

WITH_PEERS = {"quality", "step", "cross_layer"}


def main() -> int:
    """Measure the sections asked for; 0 when all could be measured, 2 when one could not."""
    arguments = _parse()
    peers = () if arguments.peers == "none" else tuple(arguments.peers.split(","))
    started = time.monotonic()

    def progress(what: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {what}", file=sys.stderr, flush=True)

    settings = Settings(
        quick=arguments.quick,
        rounds=arguments.rounds or (1 if arguments.quick else 3),
        threads=arguments.threads,
        peers=peers,
        peers_python=arguments.peers_python.absolute(),
        work=arguments.work.absolute(),
        progress=progress,
    )
    # Quick numbers mean nothing, so they are kept out of the committed results.
    results = arguments.results / "quick" if arguments.quick else arguments.results
    try:
        if peers and WITH_PEERS & set(arguments.sections):
            require_peers(settings.peers_python)
        for name in arguments.sections:
            result = import_module(f"sections.{name}").measure(settings)
            write_section(results, name, result, machine_facts(settings.threads))
            page = write_page(results)
            print(section_text({**result.to_json(), "machine": machine_facts(settings.threads)}))
            progress(f"{name} is in {page.name}")
    except BenchmarkError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def _parse() -> argparse.Namespace:
    root = BENCHMARKS.parent
    parser = argparse.ArgumentParser(description="Measure saelab beside its peers.")
    parser.add_argument("--sections", type=_sections, default=SECTIONS, help=",".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("--rounds", type=int, help="runs of each contestant (default 3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", default=",".join(PEERS), help="which peers, or none")
    parser.add_argument(
        "--peers-python", type=Path, default=root / ".venv-peers" / "bin" / "python"
    )
    parser.add_argument("--work", type=Path, default=root / ".bench", help="caches and weights")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results")
    arguments = parser.parse_args()
    unknown = set(arguments.peers.split(",")) - set(PEERS) - {"none"}
    if unknown:
        parser.error(f"unknown peers {sorted(unknown)}; known: {', '.join(PEERS)}")
    return arguments


def _sections(text: str) -> list[str]:
    unknown = set(text.split(",")) - set(SECTIONS)
    if unknown:
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}; known: {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
