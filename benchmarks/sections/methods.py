"""One training step of every method, as a multiple of the `topk` step of the same run."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from sections.common import (
    BenchmarkError,
    Check,
    SectionResult,
    Settings,
    in_turn,
    own_python,
    run_contestant,
)

SIZE = (576, 8192, 32, 4096)
QUICK_SIZE = (576, 2048, 32, 1024)
MOST: dict[str, float | None] = {
    "topk": None,
    "gradient_topk": 1.7,
    "mutual_choice": 1.5,
    "batch_topk": None,
    "feature_choice": 1.5,
    "matryoshka": None,
    "bias_adaptation": 1.3,
    "group_bias_adaptation": 1.3,
    "relu": 2.5,
    "gated": 2.5,
    "jumprelu": 2.5,
}
"""Every method, and what its step may cost of a `topk` step; None: nothing was promised."""
NOTES = [
    "bf16 product, real rows of SmolLM2-135M, each method with its defaults in a process of its "
    "own; seconds are medians over all timed steps of all rounds, after {warmup} steps of training "
    "that bring the codes to their sparsity. L0 is that of a batch after the last step.",
    "gradient_topk has both its products counted; its gradients are random here. feature_choice "
    "is timed in its second phase. Auxiliary losses are at work where there are latents for them.",
]


def measure(settings: Settings) -> SectionResult:
    """Time every method in turn."""
    warmup, repeats = (10, 3) if settings.quick else (160, 12)
    rows = settings.work / "quality" / "train.safetensors"
    if not rows.is_file():
        raise BenchmarkError("the methods are timed on real rows: run the quality section first")
    d_in, d_sae, k, batch = QUICK_SIZE if settings.quick else SIZE
    # fmt: off
    options = [
        "step", "--d-in", d_in, "--d-sae", d_sae, "--k", k, "--batch", batch,
        "--threads", settings.threads, "--warmup", warmup, "--repeats", repeats, "--rows", rows,
        "--product-dtype", "bfloat16",
    ]
    # fmt: on
    run = partial(run_contestant, own_python(), "own.saelab_topk", *options)
    contestants = {name: partial(run, "--method", name) for name in MOST}
    runs = in_turn(contestants, settings, f"methods {(d_in, d_sae, k, batch)}")
    result = SectionResult(
        title="One training step of every method",
        notes=[note.format(warmup=warmup) for note in NOTES],
        columns=["d_in, d_sae, k, batch", "method", "s / step", "x topk", "L0", "peak MiB"],
        raw=runs,
    )
    seconds = {name: _seconds(found) for name, found in runs.items()}
    label = f"{d_in}, {d_sae}, {k}, {batch}"
    for name, most in MOST.items():
        ratio = seconds[name] / seconds["topk"]
        l0 = statistics.median(found["l0"] for found in runs[name])
        mib = max(found["step_mib"] for found in runs[name])
        result.rows.append(
            [label, name, f"{seconds[name]:.3f}", f"{ratio:.2f}", f"{l0:.1f}", f"{mib:.0f}"]
        )
        if most is not None:
            what = f"{name} / topk, one step"
            result.checks.append(Check(what=what, measured=ratio, target=most, at_least=False))
    return result


def _seconds(found: list[dict[str, Any]]) -> float:
    return statistics.median(second for one in found for second in one["seconds"])
