"""A cross-layer transcoder's training step beside dense code and decode-clt's."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from sections.common import Check, SectionResult, Settings, in_turn, own_python, run_contestant

SIZE, QUICK_SIZE = (30, 576, 256, 4, 512), (6, 128, 64, 4, 128)
SHOWN = {"ours": "saelab", "dense": "dense PyTorch", "decode-clt": "decode-clt 0.0.1"}
NOTES = [
    "BatchTopK, float32, random rows, no auxiliary loss at work, CPU seconds, medians over all "
    "steps of all rounds. saelab and the dense code learn in one process, step by step in turn.",
    "The dense code computes what circuit-tracer's cross-layer transcoders do, which that library "
    "does not train. EleutherAI's clt-training is in no package registry; decode-clt is the "
    "trainer that is, of which the model, its loss, clipping and Adam are run.",
]


def measure(settings: Settings) -> SectionResult:
    """Time them in turn."""
    layers, d, size, k, rows = QUICK_SIZE if settings.quick else SIZE
    # fmt: off
    options = [
        "--layers", layers, "--d", d, "--size", size, "--k", k, "--rows", rows,
        "--steps", 4, "--threads", settings.threads,
    ]
    # fmt: on
    contestants: dict[str, Any] = {
        "saelab": partial(run_contestant, own_python(), "own.cross_layer", *options)
    }
    if settings.peers:
        python = settings.peers_python
        contestants["decode-clt"] = partial(run_contestant, python, "peers.decode_clt", *options)
    runs = in_turn(contestants, settings, "cross-layer")
    result = SectionResult(
        title="A cross-layer transcoder's training step",
        notes=[*NOTES],
        columns=["layers, d, latents and k of a layer, rows", "what", "CPU s / step", "x saelab"],
        raw=runs,
    )
    seconds = {
        name: statistics.median(second for of in found for second in of[name])
        for found in runs.values()
        for name in found[0]
    }
    label = f"{layers}, {d}, {size}, {k}, {rows}"
    for name, median in seconds.items():
        ratio = median / seconds["ours"]
        result.rows.append([label, SHOWN[name], f"{median:.2f}", f"{ratio:.2f}"])
        if name != "ours":
            what = f"cross-layer step: {SHOWN[name]} / saelab"
            result.checks.append(Check(what=what, measured=ratio, target=1.0, at_least=True))
    return result
