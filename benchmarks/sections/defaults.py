"""How the defaults of `topk` were chosen: each against its neighbours."""

from __future__ import annotations

from sections.common import (
    BenchmarkError,
    SectionResult,
    Settings,
    own_python,
    run_contestant,
)
from sections.quality import FULL, PASSES, QUICK

NOTES = [
    "One setting changed at a time from the defaults; rows, order, steps, width and k as in the "
    "quality section. FVU is of the held-out rows; dead: no positive code for `dead_after_tokens` "
    "at the end of training. The spread over seeds is in the first lines.",
]


def measure(settings: Settings) -> SectionResult:
    """Train every variant on the rows of the quality section."""
    task = QUICK if settings.quick else FULL
    data = settings.work / ("quality_quick" if settings.quick else "quality")
    rows = data / "train.safetensors"
    if not rows.is_file():
        raise BenchmarkError("the rows are missing: run the quality section first")
    settings.progress("defaults: training every variant")
    # fmt: off
    scores = run_contestant(
        own_python(), "own.defaults", "--rows", rows, "--held-out", data / "held_out.safetensors",
        "--d-sae", task.d_sae, "--k", task.k, "--batch", task.batch,
        "--passes", PASSES, "--threads", settings.threads,
    )
    # fmt: on
    return SectionResult(
        title="Defaults of topk against their neighbours",
        notes=[*NOTES],
        columns=["variant", "held-out FVU", "dead"],
        rows=[
            [name, f"{figures['fvu']:.4f}", f"{figures['dead_fraction']:.2%}"]
            for name, figures in scores.items()
        ],
        raw=scores,
    )
