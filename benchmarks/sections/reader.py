"""Reading a cache for training: faster than the trainer, whatever the size of the pool."""

from __future__ import annotations

from functools import partial

from sections.common import (
    Check,
    SectionResult,
    Settings,
    in_turn,
    median_of,
    own_python,
    run_contestant,
)

POOLS = {"8 thousand rows": 8_192, "512 thousand rows": 524_288}
QUICK_POOLS = {"8 thousand rows": 8_192, "64 thousand rows": 65_536}
D_IN, D_SAE, K, BATCH = 576, 8192, 32, 4096
TIMES_TRAINER, SPREAD = 3.0, 1.3
TRAINER = "saelab, training (bf16 product)"
NOTES = [
    f"Shuffled batches of {BATCH:,} rows of {D_IN} bf16 numbers as float32, from a cache that the "
    "system holds in memory. The trainer is a full step at (576, 8,192, 32, 4,096), the fastest of "
    "the step section.",
]


def measure(settings: Settings) -> SectionResult:
    """Rows per second of both pools and of the trainer."""
    result = SectionResult(
        title="Reading a cache for training",
        notes=[*NOTES],
        columns=["what", "rows / s", "x trainer"],
    )
    pools = QUICK_POOLS if settings.quick else POOLS
    contestants = {name: _reader(settings, rows) for name, rows in pools.items()}
    contestants[TRAINER] = _trainer(settings)
    for name, run in contestants.items():
        if name != TRAINER:
            settings.progress(f"reader: writing {name} where they are not there yet")
            run()
    runs = in_turn(contestants, settings, "reader")
    result.raw = runs
    rates = {name: median_of(runs[name], "rows_per_second") for name in pools}
    rates[TRAINER] = BATCH / median_of(runs[TRAINER], "median_seconds")
    for name, rate in rates.items():
        result.rows.append([name, f"{rate:,.0f}", f"{rate / rates[TRAINER]:.1f}"])
    for name in pools:
        ratio = rates[name] / rates[TRAINER]
        what = f"reading {name} / training"
        result.checks.append(Check(what=what, measured=ratio, target=TIMES_TRAINER, at_least=True))
    small, large = (rates[name] for name in pools)
    spread = max(small, large) / min(small, large)
    what = "faster pool / slower pool"
    result.checks.append(Check(what=what, measured=spread, target=SPREAD, at_least=False))
    return result


def _reader(settings: Settings, rows: int) -> partial:
    # fmt: off
    return partial(
        run_contestant, own_python(), "own.reader", "--rows", rows, "--d-in", D_IN,
        "--batch", BATCH, "--threads", settings.threads, "--out", settings.work / f"pool_{rows}",
    )
    # fmt: on


def _trainer(settings: Settings) -> partial:
    # fmt: off
    return partial(
        run_contestant, own_python(), "own.saelab_topk", "step", "--d-in", D_IN, "--d-sae", D_SAE,
        "--k", K, "--batch", BATCH, "--threads", settings.threads, "--product-dtype", "bfloat16",
    )
    # fmt: on
