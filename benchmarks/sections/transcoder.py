"""A transcoder's training step, as a multiple of the TopK step of the same shape."""

from __future__ import annotations

import statistics
from functools import partial

from sections.common import Check, SectionResult, Settings, in_turn, own_python, run_contestant

SIZE, QUICK_SIZE = (576, 4608, 32, 2048), (576, 1152, 32, 512)
MOST = 1.1
NOTES = [
    "float32, random rows, CPU seconds. All three learn in one process, step by step in turn; "
    "medians over all steps of all rounds but the first two of each.",
    "The skip is a dense product of the width read and the width written, with its gradient.",
]


def measure(settings: Settings) -> SectionResult:
    """Time an autoencoder, a transcoder and one with a skip."""
    d_in, d_sae, k, batch = QUICK_SIZE if settings.quick else SIZE
    # fmt: off
    options = [
        "--d-in", d_in, "--d-sae", d_sae, "--k", k, "--batch", batch,
        "--steps", 3 if settings.quick else 9, "--threads", settings.threads,
    ]
    # fmt: on
    run = partial(run_contestant, own_python(), "own.transcoder", *options)
    [rounds] = in_turn({"transcoder": run}, settings, "transcoder").values()
    result = SectionResult(
        title="A transcoder's training step",
        notes=[*NOTES],
        columns=["d_in, d_sae, k, batch", "what", "CPU s / step", "x topk"],
        raw=rounds,
    )
    seconds = {
        kind: statistics.median(second for of in rounds for second in of[kind])
        for kind in rounds[0]
    }
    label = f"{d_in}, {d_sae}, {k}, {batch}"
    for kind, median in seconds.items():
        ratio = median / seconds["topk"]
        result.rows.append([label, kind, f"{median:.3f}", f"{ratio:.2f}"])
        if kind == "transcoder":
            what = "transcoder / topk, one step"
            result.checks.append(Check(what=what, measured=ratio, target=MOST, at_least=False))
    return result
