"""Harvesting activations to disk beside the bare forward pass of the same truncated model."""

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

TOKENS, QUICK_TOKENS = 65_536, 8_192
TARGET = 0.9
NOTES = [
    "smollm2-135m up to blocks.12.hook_resid_post, contexts of 256 tokens, 16 at a time. The bare "
    "model is Hugging Face's, without head and final norm, and keeps nothing. saelab reads and "
    "tokenises text, captures, applies the row rule, and writes hashed shards in that dtype.",
    "Loading the model is in neither; starting to read the text is in saelab's.",
]


def measure(settings: Settings) -> SectionResult:
    """Tokens per second of both, in both dtypes."""
    result = SectionResult(
        title="Harvesting activations",
        notes=[*NOTES],
        columns=["dtype", "contestant", "tokens / s", "x bare"],
        raw={},
    )
    tokens = QUICK_TOKENS if settings.quick else TOKENS
    for dtype in ("bfloat16", "float32"):
        # fmt: off
        options = [
            "--dtype", dtype, "--tokens", tokens, "--threads", settings.threads,
            "--out", settings.work / "harvest",
        ]
        # fmt: on
        contestants = {
            "bare forward pass": partial(run_contestant, own_python(), "own.harvest", "bare"),
            "saelab cache": partial(run_contestant, own_python(), "own.harvest", "saelab"),
        }
        runs = in_turn(
            {name: partial(run, *options) for name, run in contestants.items()},
            settings,
            f"harvest {dtype}",
        )
        result.raw[dtype] = runs
        rates = {name: median_of(done, "tokens_per_second") for name, done in runs.items()}
        bare = rates["bare forward pass"]
        for name, rate in rates.items():
            result.rows.append([dtype, name, f"{rate:.0f}", f"{rate / bare:.2f}"])
        ratio = rates["saelab cache"] / bare
        what = f"{dtype}: saelab cache / bare forward pass"
        result.checks.append(Check(what=what, measured=ratio, target=TARGET, at_least=True))
    return result
