"""Harvesting activations to disk, with and without gradients, beside bare passes of the model."""

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
GRADIENT_TOKENS = 16_384
"""Fewer, because a pass with gradients does five times the work."""
TARGET = 0.9
GRADIENT_TARGET = 2.2
BLOCKS, GRADIENT_BLOCKS = 13, 30 + 2 * 8 + 17
"""Blocks' worth of multiplications without and with gradients: see the notes."""
FLOOR_TARGET = 1.25
WITHOUT = {"bare forward pass": "truncated", "saelab cache": "saelab"}
WITH_GRADIENTS = {
    "bare whole pass with loss": "loss",
    "bare gradients by autograd": "autograd",
    "saelab cache with gradients": "gradients",
    "its products alone": "products",
}
NOTES = [
    "smollm2-135m up to blocks.12.hook_resid_post, contexts of 256 tokens, 16 at a time. The bare "
    "model is Hugging Face's, without head and final norm, and keeps nothing. saelab reads and "
    "tokenises text, captures, applies the row rule, and writes hashed shards in that dtype.",
    "Loading the model is in neither; starting to read the text is in saelab's.",
    "With gradients, counted in multiplications with weights: caching without them takes the first "
    "13 of 30 blocks. The loss takes all 30 and the head, whose 49,152 x 576 weights are those of "
    "8 blocks; the gradient takes the head once more and 17 blocks backwards. That is 63 blocks "
    "against 13, or 4.8 times the work (60 against 16, 3.8 times, at block 15): 2.2 times the time "
    "of the cache without gradients, as first promised, would need multiplications more than twice "
    "as fast as the cache's own. Checked too: 2.2 times the whole pass that computes the loss (38 "
    "blocks), and nearness to 63/13.",
    "`products`: the products with weights that a pass with gradients holds, forward and "
    "backward, and attention forward; no norms, no activation functions, no softmax, no backward "
    "pass of attention. `autograd` computes the same gradients with PyTorch's alone, 4 contexts at "
    "a time, from the hook point on.",
]


def measure(settings: Settings) -> SectionResult:
    """Tokens per second of all, without gradients in both dtypes."""
    result = SectionResult(
        title="Harvesting activations",
        notes=[*NOTES],
        columns=["dtype", "contestant", "tokens / s", "x bare", "time x saelab cache"],
        raw={},
    )
    tokens = QUICK_TOKENS if settings.quick else TOKENS
    gradient_tokens = QUICK_TOKENS if settings.quick else GRADIENT_TOKENS
    for dtype in ("bfloat16", "float32"):
        sizes = dict.fromkeys(WITHOUT, tokens)
        if dtype == "bfloat16":
            sizes |= dict.fromkeys(WITH_GRADIENTS, gradient_tokens)
        _measure_dtype(dtype, sizes, settings, result)
    return result


def _measure_dtype(
    dtype: str, sizes: dict[str, int], settings: Settings, result: SectionResult
) -> None:
    """Add rows and checks of the contestants of one dtype, each with its number of tokens."""
    modes = {**WITHOUT, **WITH_GRADIENTS}
    # fmt: off
    contestants = {
        name: partial(
            run_contestant, own_python(), "own.harvest", modes[name], "--dtype", dtype,
            "--tokens", tokens, "--threads", settings.threads, "--out", settings.work / "harvest",
        )
        for name, tokens in sizes.items()
    }
    # fmt: on
    runs = in_turn(contestants, settings, f"harvest {dtype}")
    result.raw[dtype] = runs
    rates = {name: median_of(done, "tokens_per_second") for name, done in runs.items()}
    bare, cache = rates["bare forward pass"], rates["saelab cache"]
    for name, rate in rates.items():
        row = [dtype, name, f"{rate:.0f}", f"{rate / bare:.2f}", f"{cache / rate:.2f}"]
        result.rows.append(row)
    what = f"{dtype}: saelab cache / bare forward pass"
    result.checks.append(Check(what=what, measured=cache / bare, target=TARGET, at_least=True))
    if "saelab cache with gradients" in rates:
        result.checks += _gradient_checks(dtype, rates)


def _gradient_checks(dtype: str, rates: dict[str, float]) -> list[Check]:
    """The promise as it was made, and against what bounds it."""
    ours = rates["saelab cache with gradients"]
    floor = rates["saelab cache"] * BLOCKS / GRADIENT_BLOCKS
    # fmt: off
    bounds = [
        ("saelab cache", rates["saelab cache"], GRADIENT_TARGET),
        ("bare whole pass with loss", rates["bare whole pass with loss"], GRADIENT_TARGET),
        (f"{GRADIENT_BLOCKS}/{BLOCKS} x saelab cache", floor, FLOOR_TARGET),
    ]
    # fmt: on
    return [
        Check(
            what=f"{dtype}, time: saelab cache with gradients / {other}",
            measured=rate / ours,
            target=target,
            at_least=False,
        )
        for other, rate, target in bounds
    ]
