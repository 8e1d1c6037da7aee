"""The feature store: at full scale, beside sae-dashboard, and what reading a page takes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sections.common import (
    BenchmarkError,
    Check,
    SectionResult,
    Settings,
    in_turn,
    median_of,
    own_python,
    run_contestant,
)

SCALE = {"--tokens": 1 << 20, "--d-sae": 24_576}
QUICK_SCALE = {"--tokens": 1 << 16, "--d-sae": 2_048}
SAME = {"--tokens": 1 << 17, "--d-sae": 4_096}
QUICK_SAME = {"--tokens": 1 << 14, "--d-sae": 1_024}
PEER = "sae-dashboard"
PEER_FEATURES, QUICK_PEER_FEATURES = 256, 32
SECONDS, GIGABYTES, PAGE_MS, TIMES_PEER = 240.0, 4.0, 5.0, 20.0
NOTES = [
    "Full scale: 1,048,576 tokens, 24,576 features, L0 32, width 576, vocabulary 49,152: all "
    "that a feature's page shows, for every feature, from sparse codes on disk. The language model "
    "and the encoder are not in it.",
    f"Beside {PEER} 0.8: 131,072 tokens, 4,096 features, k 32, from activations in memory, so that "
    "neither pays for a language model; saelab builds all features, encoder and file included, "
    f"{PEER} one batch of 256, in memory, which is what it does again for every batch.",
]


def measure(settings: Settings) -> SectionResult:
    """Seconds, memory and page times at full scale, and features per second of both."""
    result = SectionResult(
        title="Feature store", notes=[*NOTES], columns=["what", "measured"], raw={}
    )
    scale, same, batch = _sizes(settings)
    python = _peer_python(settings)
    folder = settings.work / "features"
    settings.progress("features: full scale")
    full = run_contestant(own_python(), "own.features", "scale", *_options(settings, folder, scale))
    result.raw["scale"] = full
    result.rows += [
        ["building, full scale", f"{full['seconds']:,.0f} s"],
        ["features per second", f"{full['features_per_second']:,.0f}"],
        ["peak memory", f"{full['peak_gb']:.2f} GB"],
        ["file", f"{full['store_mb']:,.0f} MB"],
        ["reading a page, median", f"{full['page_ms_p50']:.2f} ms"],
        ["reading a page, 95 %", f"{full['page_ms_p95']:.2f} ms"],
    ]
    result.checks += [
        Check(what="building, seconds", measured=full["seconds"], target=SECONDS, at_least=False),
        Check(what="peak memory, GB", measured=full["peak_gb"], target=GIGABYTES, at_least=False),
        Check(what="page, ms (95 %)", measured=full["page_ms_p95"], target=PAGE_MS, at_least=False),
    ]
    if python is not None:
        _beside_peer(settings, result, python, same, batch)
    return result


def _beside_peer(
    settings: Settings, result: SectionResult, python: Path, same: dict[str, int], batch: int
) -> None:
    folder = settings.work / f"features_same_{same['--d-sae']}"
    options = _options(settings, folder, same)
    if not (folder / "inputs.safetensors").is_file():
        settings.progress("features: preparing an SAE and its activations")
        run_contestant(own_python(), "own.features", "prepare", *options)
    # fmt: off
    peer = partial(
        run_contestant, python, "peers.sae_dashboard", "--out", folder, "--features", batch,
        "--threads", settings.threads,
    )
    # fmt: on
    ours = partial(run_contestant, own_python(), "own.features", "same", *options)
    runs = in_turn({"saelab": ours, PEER: peer}, settings, "features")
    result.raw["same"] = runs
    rates = {name: median_of(results, "features_per_second") for name, results in runs.items()}
    result.rows += [
        [f"{name}, features per second", f"{rate:,.1f}"] for name, rate in rates.items()
    ]
    ratio = rates["saelab"] / rates[PEER]
    what = f"features per second, saelab / {PEER}"
    result.checks.append(Check(what=what, measured=ratio, target=TIMES_PEER, at_least=True))


def _sizes(settings: Settings) -> tuple[dict[str, int], dict[str, int], int]:
    if settings.quick:
        return QUICK_SCALE, QUICK_SAME, QUICK_PEER_FEATURES
    return SCALE, SAME, PEER_FEATURES


def _options(settings: Settings, folder: Path, sizes: dict[str, int]) -> list[str | int | Path]:
    flat: list[str | int | Path] = ["--out", folder, "--threads", settings.threads]
    for name, value in sizes.items():
        flat += [name, value]
    return flat


def _peer_python(settings: Settings) -> Path | None:
    """Interpreter of sae-dashboard's own environment, beside the peers'; None: leave it out.

    Raises:
        BenchmarkError: peers are asked for and it is not there.
    """
    if not settings.peers:
        return None
    environment = settings.peers_python.parent.parent
    environment = environment.with_name(f"{environment.name}-sae-dashboard")
    python = environment / "bin" / "python"
    if not python.is_file():
        raise BenchmarkError(
            f"no environment of {PEER} at {environment}: create it with `make peers-dashboard` (or "
            "benchmarks/setup_peers.sh), or leave the peers out with --peers none"
        )
    return python
