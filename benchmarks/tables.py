"""Numbers in README and docs, written from the result files.

    python benchmarks/tables.py

rewrites what stands between `<!-- from NAME -->` and `<!-- end -->` in the pages of `PAGES`, and
`results/results.md`. A test compares, so that no page says what no file says.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHMARKS))

from sections.report import page_text  # noqa: E402

PAGES = ("README.md", "docs/architecture.md", "docs/results.md", "docs/transcoders.md")
PAGES += ("docs/cross_layer.md",)
SHAPE = "768, 24576, 32, 4096"
"""Of the step in the README: d_in, d_sae, k, batch."""
BLOCK = re.compile(r"(<!-- from ([\w-]+) -->\n).*?(<!-- end -->)", flags=re.S)
Results = Mapping[str, Mapping[str, Any]]
"""Section -> what its JSON holds."""


def read_results(folder: Path = BENCHMARKS / "results") -> Results:
    """Every section that was measured."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def rewritten(page: str, results: Results) -> str:
    """A page with its marked parts made again.

    Raises:
        KeyError: a mark that names no part.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{PARTS[found[2]](results)}\n{found[3]}", page)


def step_and_quality(results: Results) -> str:
    """The README's table: a step's time and memory, and what was learnt from the same rows."""
    timed = {
        contestant: f"{seconds:.2f} s | {float(ratio):.1f}{product} | {int(mib) / 1024:.1f} GiB"
        for shape, contestant, seconds, ratio, mib in results["step"]["rows"]
        if shape == SHAPE
        for seconds, product in [(float(seconds), " (bf16)" if "bf16" in contestant else "")]
    }
    scores, reports = results["quality"]["raw"]["scores"], results["quality"]["raw"]["reports"]
    ours = [name for name in scores if name.startswith("saelab")]
    lines = [
        f"| saelab, bf16 product (default) | {timed['saelab, bf16 product']} "
        f"| **{_mean_sd(scores[name]['fvu'] for name in ours)}** "
        f"| **{_mean_sd(scores[name]['loss_recovered_mean'] for name in ours)}** |",
        f"| saelab, fp32 product | {timed['saelab, fp32']} | | |",
    ]
    for name in (name for name in scores if name not in ours):
        timing = timed.get(reports[name]["library"], " | | ")
        score = f"{scores[name]['fvu']:.4f} | {scores[name]['loss_recovered_mean']:.4f}"
        changed = f", lr {reports[name]['lr']:g}" if "-lr" in name else ""
        lines.append(f"| {reports[name]['library']}{changed} | {timing} | {score} |")
    head = "| | step | × bare product | peak memory | FVU | loss recovered |\n"
    return f"{head}|---|---:|---:|---:|---:|---:|\n" + "\n".join(lines)


def machines(results: Results) -> str:
    """Where each section was measured: not all on one machine."""
    where: dict[str, list[str]] = {}
    for name, result in results.items():
        machine = result["machine"]
        where.setdefault(f"{machine['cores']} cores of {machine['cpu']}", []).append(name)
    return "Measured on " + "; on ".join(f"{cpu}: {', '.join(n)}" for cpu, n in where.items()) + "."


def speed(results: Results) -> str:
    """The README's sentences about harvesting, reading, feature stores and methods."""
    harvest = {(dtype, who): (rate, of) for dtype, who, rate, of, _ in results["harvest"]["rows"]}
    rate, bf16 = harvest["bfloat16", "saelab cache"]
    _, fp32 = harvest["float32", "saelab cache"]
    features = _checks(results, "features")
    ratios = [float(row[3]) for row in results["methods"]["rows"] if row[1] != "topk"]
    pools = [row for row in results["reader"]["rows"] if "rows" in row[0]]
    page = dict(results["features"]["rows"])["reading a page, median"]
    return (
        f"Harvesting runs at {bf16} of the bare truncated forward pass in bfloat16 "
        f"({int(rate):,} tokens/s) and {fp32} in float32, hashing and\nwriting included; a cache "
        f"is read {min(float(row[2]) for row in pools):.0f} times as fast as the fastest training "
        "step consumes it, whatever its size.\n\n"
        "Everything about every one of 24,576 features on a million tokens is computed in "
        f"{features['building, seconds']:.0f} s and {features['peak memory, GB']:.1f} GB (the "
        "model's forward pass\napart), "
        f"{features['features per second, saelab / sae-dashboard']:.0f} times as many features per "
        "second as sae-dashboard 0.8 on the same SAE and tokens; a feature's page is read in\n"
        f"{page}. A step of the other {len(ratios)} methods costs {min(ratios):.1f} to "
        f"{max(ratios):.1f} times a TopK step."
    )


def gradients(results: Results) -> str:
    """What caching with gradients costs."""
    names = (
        "saelab cache",
        "63/13 x saelab cache",
        "bare whole pass with loss",
    )
    checks = _checks(results, "harvest")
    start = "bfloat16, time: saelab cache with gradients / "
    cache, floor, whole = (checks[start + name] for name in names)
    times = {row[1]: float(row[4]) for row in results["harvest"]["rows"] if row[0] == "bfloat16"}
    autograd = times["bare gradients by autograd"] / times["saelab cache with gradients"]
    return (
        f"Measured: {cache:.1f} times the cache without gradients at block 12, {floor:.2f} times "
        f"the floor of 63/13 and {whole:.2f} times the bare pass\nthat computes the loss alone; "
        f"PyTorch's autograd takes {autograd:.2f} times as long as ours."
    )


def table_of(section: str) -> Callable[[Results], str]:
    """A section's table as it is."""

    def table(results: Results) -> str:
        columns, rows = results[section]["columns"], results[section]["rows"]
        lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    return table


def _checks(results: Results, section: str) -> dict[str, float]:
    return {check["what"]: check["measured"] for check in results[section]["checks"]}


def _mean_sd(values: Any) -> str:
    known = list(values)
    return f"{statistics.mean(known):.4f} ± {statistics.stdev(known):.4f}"


PARTS: dict[str, Callable[[Results], str]] = {
    "step-and-quality": step_and_quality,
    "machines": machines,
    "speed": speed,
    "gradients": gradients,
    **{name: table_of(name) for name in ("defaults", "transcoder", "cross_layer")},
}


def main() -> None:
    """Write every page again."""
    results = read_results()
    for name in PAGES:
        path = BENCHMARKS.parent / name
        path.write_text(rewritten(path.read_text(encoding="utf-8"), results), encoding="utf-8")
    (BENCHMARKS / "results" / "results.md").write_text(page_text(results))


if __name__ == "__main__":
    main()
