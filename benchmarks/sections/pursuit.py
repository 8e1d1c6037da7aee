"""Gradient pursuit beside the same algorithm with dense matrices: time, and equal codes."""

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

D_IN, L0 = 576, 32
WIDTHS = (2304, 9216)
FASTER = 10.0
ALL_ROWS, MINUTES = 250_000, 2.0
CONTESTANTS = {
    "literal64": "dense, float64",
    "literal32": "dense, float32",
    "saelab": "saelab",
}
NOTES = [
    f"Codes by gradient pursuit of rows of width {D_IN} that mix {L0} latents and noise, {L0} "
    "steps a row. Dense: the published algorithm with its division by zero mended, 256 rows at a "
    "time. saelab's share of the rows is larger, so that its batches are full; times are per row.",
    "The codes are compared with those of the dense algorithm in float64, row by row.",
]


def measure(settings: Settings) -> SectionResult:
    """Time each width with every contestant in turn."""
    result = SectionResult(
        title="Gradient pursuit",
        notes=NOTES,
        columns=["latents", "how", "µs per row", "× saelab", "rows with other latents"],
        raw={},
    )
    for d_sae in WIDTHS[:1] if settings.quick else WIDTHS:
        _measure_width(d_sae, settings, result)
    return result


def _measure_width(d_sae: int, settings: Settings, result: SectionResult) -> None:
    few, many = (64, 256) if settings.quick else (512, 8192)
    contestants = {}
    for how in CONTESTANTS:
        # fmt: off
        options = [
            "--d-in", D_IN, "--d-sae", d_sae, "--l0", L0, "--threads", settings.threads,
            "--how", how, "--rows", many if how == "saelab" else few,
            "--codes", settings.work / "pursuit",
        ]
        # fmt: on
        contestants[how] = partial(run_contestant, own_python(), "own.pursuit", *options)
    runs = in_turn(contestants, settings, f"pursuit, {d_sae} latents")
    result.raw[str(d_sae)] = runs
    per_row = {how: median_of(runs[how], "microseconds_per_row") for how in CONTESTANTS}
    for how, label in CONTESTANTS.items():
        last = runs[how][-1]
        other = last.get("rows_with_other_latents")
        result.rows.append(
            [
                f"{d_sae:,}",
                label,
                f"{per_row[how]:,.0f}",
                f"{per_row[how] / per_row['saelab']:.1f}",
                "" if other is None else f"{other} of {last['rows_compared']:,}",
            ]
        )
    result.checks += [
        Check(
            what=f"times as fast as the dense algorithm in float64, {d_sae:,} latents",
            measured=per_row["literal64"] / per_row["saelab"],
            target=FASTER,
            at_least=True,
        ),
        Check(
            what=f"rows with other latents than the dense algorithm's, {d_sae:,} latents",
            measured=runs["saelab"][-1]["rows_with_other_latents"],
            target=0,
            at_least=False,
        ),
        Check(
            what=f"minutes for {ALL_ROWS:,} rows, {d_sae:,} latents",
            measured=per_row["saelab"] * ALL_ROWS / 60e6,
            target=MINUTES,
            at_least=False,
        ),
    ]
