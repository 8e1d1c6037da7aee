"""Quality beside speed: every library trained on the same rows, judged by one evaluator."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sections.common import (
    PEERS,
    BenchmarkError,
    Check,
    SectionResult,
    Settings,
    own_python,
    run_contestant,
)

OWN_SEEDS = (0, 1, 2)
PASSES = 3
COLUMNS = [
    "contestant",
    "FVU",
    "own FVU",
    "FVU, training rows",
    "recovered (zero)",
    "recovered (mean)",
    "KL",
    "FVU, mixed text",
    "recovered (mean), mixed text",
    "dead",
    "lr",
    "s",
]
NOTES = [
    "Each library trains with its own code at its own defaults on the same rows in the same order; "
    "`lr` marks the one changed setting. All are scored by saelab's `core` suite on held-out text: "
    "FVU pooled over rows against their mean; loss recovered with the reconstruction spliced in.",
    "`own FVU` is what the library's own forward gives on stored held-out rows: it must agree with "
    "the evaluator's on the same rows, or the conversion is wrong.",
    "In brackets: 95 % intervals over held-out documents, of which every one gives windows of 128 "
    "tokens in turn, with the model in float32. Training rows: one of eight. Mixed text: the same "
    "dictionaries on text of other kinds, the 155 data sets of sae-probes 0.4.2, where it is "
    "installed.",
    "saelab's defaults were chosen on these held-out rows (section defaults); peers are at theirs.",
    "Seconds are of the whole training, one library after another, data loading included.",
]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every contestant learns."""

    tokens: int
    held_out_tokens: int
    loss_tokens: int
    d_sae: int
    k: int
    batch: int


FULL = Task(
    tokens=400_000, held_out_tokens=65_536, loss_tokens=16_384, d_sae=4608, k=32, batch=2048
)
QUICK = Task(tokens=16_384, held_out_tokens=4_096, loss_tokens=2_048, d_sae=512, k=32, batch=1024)


def measure(settings: Settings) -> SectionResult:
    """Harvest, train all, score all."""
    task = QUICK if settings.quick else FULL
    data = settings.work / ("quality_quick" if settings.quick else "quality")
    settings.progress("quality: harvesting rows")
    # fmt: off
    stored = run_contestant(
        own_python(), "own.quality_rows", "--tokens", task.tokens, "--threads", settings.threads,
        "--held-out-tokens", task.held_out_tokens, "--out", data,
    )
    # fmt: on
    steps = -(-PASSES * stored["rows"] // task.batch)
    reports = {
        name: _train(settings, task, data, steps, stored["hash"], name, *how)
        for name, how in _contestants(settings).items()
    }
    settings.progress("quality: scoring all")
    scores = _score(settings, task, data, list(reports))
    result = SectionResult(
        title="Quality on the same rows, steps, width and k",
        notes=[*NOTES, _setting_note(task, steps, stored)],
        columns=[*COLUMNS],
        raw={"reports": reports, "scores": scores},
    )
    for name, report in reports.items():
        _check_conversion(name, report, scores[name])
        result.rows.append(_row(name, report, scores[name]))
    result.checks = _checks(scores)
    return result


def _contestants(settings: Settings) -> dict[str, tuple[Path, str, list[str | int]]]:
    ours = {
        f"saelab-seed{seed}": (own_python(), "own.saelab_topk", ["--seed", seed])
        for seed in (OWN_SEEDS[:1] if settings.quick else OWN_SEEDS)
    }
    peers = {name: (settings.peers_python, PEERS[name], []) for name in settings.peers}
    if "dictionary-learning" in peers:
        python, module, _ = peers["dictionary-learning"]
        peers["dictionary-learning-lr1e-3"] = (python, module, ["--lr", "1e-3"])
    return ours | peers


def _train(
    settings: Settings,
    task: Task,
    data: Path,
    steps: int,
    data_hash: str,
    name: str,
    python: Path,
    module: str,
    extra: list[str | int],
) -> dict[str, Any]:
    # fmt: off
    options = [
        "quality", "--d-sae", task.d_sae, "--k", task.k, "--batch", task.batch, "--steps", steps,
        "--threads", settings.threads, *extra,
    ]
    # fmt: on
    weights, record = _weights(data, name), data / "weights" / f"{name}.json"
    pins = (Path(__file__).parent.parent / "constraints-peers.txt").read_text()
    key = hashlib.sha256(json.dumps([options, data_hash, pins]).encode()).hexdigest()
    # Peers are pinned and their runs are long: an earlier run of the very same is kept.
    if python != own_python() and record.is_file():
        report = json.loads(record.read_text())
        if report["key"] == key and weights.is_file():
            settings.progress(f"quality: {name} is there from an earlier run")
            return report
    settings.progress(f"quality: training {name}, {steps} steps")
    rows = ["--rows", data / "train.safetensors", "--held-out", data / "held_out.safetensors"]
    report = {"key": key} | run_contestant(python, module, *options, *rows, "--out", weights)
    record.write_text(json.dumps(report))
    return report


def _weights(data: Path, name: str) -> Path:
    return data / "weights" / f"{name}.safetensors"


def _score(
    settings: Settings, task: Task, data: Path, names: list[str]
) -> dict[str, dict[str, float]]:
    # fmt: off
    return run_contestant(
        own_python(), "own.quality_scores", *(_weights(data, name) for name in names),
        "--data", data, "--tokens", task.held_out_tokens, "--loss-tokens", task.loss_tokens,
        "--threads", settings.threads, "--out", data / "dictionaries",
    )
    # fmt: on


def _check_conversion(name: str, report: dict[str, Any], score: dict[str, float]) -> None:
    theirs, ours = report["fvu_own_forward"], score["fvu_stored_rows"]
    if abs(theirs - ours) > 1e-3 * ours:
        raise BenchmarkError(
            f"{name}: its own forward finds FVU {theirs:.5f}, its converted weights {ours:.5f}; "
            "the conversion in its module is wrong"
        )


def _row(name: str, report: dict[str, Any], score: dict[str, float]) -> list[str]:
    return [
        f"{name} ({report['library']})",
        f"{score['fvu']:.4f}",
        f"{report['fvu_own_forward']:.4f}",
        f"{score['fvu_training_rows']:.4f}",
        f"{score['loss_recovered_zero']:.4f}",
        _with_interval(score, "loss_recovered_mean"),
        _with_interval(score, "kl"),
        f"{score['mixed_fvu']:.4f}" if "mixed_fvu" in score else "",
        _with_interval(score, "mixed_loss_recovered_mean"),
        f"{score['dead_fraction']:.1%}",
        f"{report['lr']:.2g}",
        f"{report['wall_seconds']:.0f}",
    ]


def _with_interval(score: dict[str, float], name: str) -> str:
    """A number with its interval over documents; nothing where it was not measured."""
    if name not in score:
        return ""
    return f"{score[name]:.4f} [{score[f'{name}_low']:.4f}, {score[f'{name}_high']:.4f}]"


def _setting_note(task: Task, steps: int, stored: dict[str, Any]) -> str:
    return (
        f"smollm2-135m, blocks.12.hook_resid_post, {stored['rows']:,} rows (massive ones "
        f"excluded), {task.d_sae:,} latents, k {task.k}, batch {task.batch:,}, {steps:,} steps."
    )


def _checks(scores: dict[str, dict[str, float]]) -> list[Check]:
    """The worst of our seeds against every peer, in FVU and in loss recovered."""
    ours = [score for name, score in scores.items() if name.startswith("saelab")]
    fvu = max(score["fvu"] for score in ours)
    recovered = min(score["loss_recovered_mean"] for score in ours)
    checks = []
    for name, score in scores.items():
        if name.startswith("saelab"):
            continue
        what = f"FVU, worst saelab seed against {name}"
        checks.append(Check(what=what, measured=fvu, target=score["fvu"], at_least=False))
        what = f"loss recovered (mean ablation), worst saelab seed against {name}"
        target = score["loss_recovered_mean"]
        checks.append(Check(what=what, measured=recovered, target=target, at_least=True))
    return checks
