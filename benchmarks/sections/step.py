"""One full TopK training step of each library beside the bare product, in time and memory."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

from sections.common import (
    PEERS,
    Check,
    SectionResult,
    Settings,
    in_turn,
    own_python,
    run_contestant,
)

SIZES = ((576, 8192, 32, 4096), (768, 24576, 32, 4096))
QUICK_SIZES = ((576, 2048, 32, 1024),)
PRODUCTS = {"float32": "product, fp32", "bfloat16": "product, bf16"}
OWN = {"float32": "saelab, fp32", "bfloat16": "saelab, bf16 product"}
NOTES = [
    "A step is everything a library does from one batch to the next: loss, gradients, optimizer, "
    "clipping and decoder norms where it has them, dead-latent statistics. The product is `x @ W` "
    "alone, a new output each time.",
    "Seconds are medians over all timed steps of all rounds; each run is a process of its own. "
    "Peak memory is the largest resident memory of that process above what it held before the "
    "library built anything: weights, gradients, optimizer and temporaries.",
    "saelab's ratio to the product is to the product in its own dtype; peers' to the fp32 one.",
]


def measure(settings: Settings) -> SectionResult:
    """Time every contestant at every size."""
    result = SectionResult(
        title="One training step",
        notes=[*NOTES],
        columns=["d_in, d_sae, k, batch", "contestant", "s / step", "x product", "peak MiB"],
        raw={},
    )
    for size in QUICK_SIZES if settings.quick else SIZES:
        runs = in_turn(_contestants(size, settings), settings, f"step {size}")
        summary = {name: _summary(results) for name, results in runs.items()}
        label = ", ".join(str(number) for number in size)
        result.raw[label] = runs
        shown = {name: results[0].get("library", name) for name, results in runs.items()}
        result.rows += [
            _row(label, name if name in OWN.values() else shown[name], name, summary)
            for name in summary
        ]
        result.checks += _checks(label, summary)
    return result


def _contestants(size: tuple[int, int, int, int], settings: Settings) -> dict[str, Any]:
    d_in, d_sae, k, batch = size
    # fmt: off
    options = [
        "step", "--d-in", d_in, "--d-sae", d_sae, "--k", k, "--batch", batch,
        "--threads", settings.threads, "--repeats", 3 if settings.quick else 5,
        "--rows", _rows(settings.work, d_in),
    ]
    # fmt: on
    ours = partial(run_contestant, own_python())
    peer = partial(run_contestant, settings.peers_python)
    contestants: dict[str, Any] = {}
    for dtype, name in PRODUCTS.items():
        contestants[name] = partial(ours, "own.product", *options, "--dtype", dtype)
    for dtype, name in OWN.items():
        contestants[name] = partial(ours, "own.saelab_topk", *options, "--product-dtype", dtype)
    for name in settings.peers:
        contestants[name] = partial(peer, PEERS[name], *options)
    return contestants


def _rows(work: Path, d_in: int) -> Path | None:
    """Real rows that the quality section captured, where their width fits."""
    rows = work / "quality" / "train.safetensors"
    return rows if rows.is_file() and d_in == 576 else None


def _summary(results: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "seconds": statistics.median(second for result in results for second in result["seconds"]),
        "mib": max(result["step_mib"] for result in results),
    }


def _product_of(name: str) -> str:
    return PRODUCTS["bfloat16" if "bf16" in name else "float32"]


def _row(label: str, shown: str, name: str, summary: dict[str, dict[str, float]]) -> list[str]:
    seconds = summary[name]["seconds"]
    ratio = seconds / summary[_product_of(name)]["seconds"]
    return [label, shown, f"{seconds:.3f}", f"{ratio:.2f}", f"{summary[name]['mib']:.0f}"]


def _checks(label: str, summary: dict[str, dict[str, float]]) -> list[Check]:
    def seconds(name: str) -> float:
        return summary[name]["seconds"]

    targets = {"float32": (1.5, 5.0, 1.5), "bfloat16": (2.2, 9.0, 2.5)}
    checks = []
    for dtype, (of_product, of_sae_lens, of_sparsify) in targets.items():
        name, product = OWN[dtype], PRODUCTS[dtype]
        what, ratio = f"{label}: {name} / {product}", seconds(name) / seconds(product)
        checks.append(Check(what=what, measured=ratio, target=of_product, at_least=False))
        for peer, target in (("sae-lens", of_sae_lens), ("eai-sparsify", of_sparsify)):
            if peer in summary:
                what, ratio = f"{label}: {peer} / {name}", seconds(peer) / seconds(name)
                checks.append(Check(what=what, measured=ratio, target=target, at_least=True))
        if "sae-lens" in summary:
            what = f"{label}: peak memory, {name} / sae-lens"
            ratio = summary[name]["mib"] / summary["sae-lens"]["mib"]
            checks.append(Check(what=what, measured=ratio, target=1 / 3, at_least=False))
    return checks
