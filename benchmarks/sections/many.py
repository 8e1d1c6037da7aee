"""Several dictionaries on one stream: the model runs once, whoever learns from it."""

from __future__ import annotations

from functools import partial

from sections.common import (
    SectionResult,
    Settings,
    in_turn,
    median_of,
    own_python,
    run_contestant,
)

COUNTS = (1, 2, 4, 8)
D_SAE, K, BATCH = 2304, 32, 2048
NOTES = [
    f"TopK dictionaries of {D_SAE:,} latents, k {K}, batch {BATCH:,}, streamed from SmolLM2-135M "
    "at layer 12 with no cache: {tokens:,} tokens are trained on, four more batches fill the pool. "
    "Wall clock of the whole run, loading the model included.",
    "A dictionary more costs its own steps and nothing else; the last column is what as many runs "
    "of one dictionary each would take, as a multiple.",
]


def measure(settings: Settings) -> SectionResult:
    """Time runs of 1, 2, 4 and 8 dictionaries in turn."""
    tokens = 4 * BATCH if settings.quick else 24 * BATCH
    # fmt: off
    options = [
        "--tokens", tokens, "--d-sae", D_SAE, "--k", K, "--batch", BATCH,
        "--threads", settings.threads,
    ]
    # fmt: on
    run = partial(run_contestant, own_python(), "own.many", *options)
    contestants = {str(count): partial(run, "--dictionaries", count) for count in COUNTS}
    runs = in_turn(contestants, settings, "many")
    seconds = {count: median_of(runs[str(count)], "seconds") for count in COUNTS}
    result = SectionResult(
        title="Several dictionaries on one stream",
        notes=[note.format(tokens=tokens) for note in NOTES],
        columns=["dictionaries", "s", "s more per dictionary", "runs apart / together"],
        raw=runs,
    )
    for count in COUNTS:
        more = (seconds[count] - seconds[1]) / (count - 1) if count > 1 else None
        result.rows.append(
            [
                str(count),
                f"{seconds[count]:.1f}",
                "" if more is None else f"{more:.1f}",
                f"{count * seconds[1] / seconds[count]:.2f}",
            ]
        )
    return result
