"""`saelab quickstart`: cache, train and judge a first dictionary on the embedded model, offline.

It runs the same sub-commands a person would type, and gathers their figures in `report.json`. An
interrupted quickstart goes on where it stopped when it is started again with --resume.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.cli import run_command
from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.files import read_json, write_json
from saelab.manifest import new_manifest

KIND = "quickstart_report"
SCHEMA_VERSION = 1
REPORT_FILE = "report.json"
TIMES_FILE = "seconds.json"


@dataclass(frozen=True, kw_only=True)
class QuickstartCommand:
    """Cache, train and judge a first dictionary on the embedded model; needs no network."""

    out: Path = Path("runs/quickstart")
    """Folder for everything it makes."""
    cache_tokens: int = 400_000
    """Tokens of text to run through the model."""
    train_tokens: int = 1_200_000
    """Rows to train on, repeats included."""
    d_sae: int = 4608
    """Number of latents."""
    k: int = 32
    """Active latents per token."""
    eval_tokens: int = 32_768
    """Held-out tokens to judge on; losses are measured on a quarter of them."""
    resume: bool = False
    """Go on with an interrupted quickstart."""
    overwrite: bool = False
    """Delete the folder and start anew."""

    def __post_init__(self) -> None:
        least = {
            "cache_tokens": 8192,
            "train_tokens": 4096,
            "d_sae": 1,
            "k": 1,
            "eval_tokens": 4096,
        }
        problems = [
            f"{name} is {getattr(self, name)}; it must be at least {value}"
            for name, value in least.items()
            if getattr(self, name) < value
        ]
        if self.resume and self.overwrite:
            problems.append("--resume and --overwrite exclude each other: give one of them")
        if problems:
            raise ConfigError(problems)


CONFIG = QuickstartCommand


def main(arguments: Sequence[str]) -> None:
    """Run the three stages and report."""
    command = parse_arguments(QuickstartCommand, arguments, program="saelab quickstart")
    _prepare(command)
    seconds = _run_stages(command)
    report = _report(command, seconds)
    write_json(command.out / REPORT_FILE, report)
    _show(command, report)


def _prepare(command: QuickstartCommand) -> None:
    out = command.out
    if not out.exists():
        return
    if command.overwrite:
        if any(out.iterdir()) and not (out / TIMES_FILE).exists():
            raise ConfigError(
                f"{out} was not made by quickstart: delete it yourself, or give --out"
            )
        shutil.rmtree(out)
    elif any(out.iterdir()) and not command.resume:
        raise ConfigError(
            f"{out} already exists: give --resume to go on with it, --overwrite to start anew, "
            "or another --out"
        )


def _stages(command: QuickstartCommand) -> dict[str, list[str]]:
    """The sub-commands a person would type, by what their seconds are called."""
    cache, train = command.out / "cache", command.out / "train"
    # The embedded text has 237 long documents: a window of each shows more of them.
    window = "2048" if command.cache_tokens <= 400_000 else "None"
    return {
        "cache": [
            "cache",
            str(cache),
            *("--n-tokens", str(command.cache_tokens)),
            *("--text.max-tokens-per-document", window),
        ],
        "train": [
            "train",
            "quickstart",
            *("--cache", str(cache)),
            *("--out", str(train)),
            *("--n-tokens", str(command.train_tokens)),
            *("--d-sae", str(command.d_sae)),
            *("--k", str(command.k)),
        ],
        "eval": [
            "eval",
            "core",
            str(_dictionary_folder(command)),
            *("--n-tokens", str(command.eval_tokens)),
            *("--n-loss-tokens", str(command.eval_tokens // 4)),
            "--overwrite",
        ],
    }


def _run_stages(command: QuickstartCommand) -> dict[str, float]:
    """Run what has not been run yet; seconds of finished stages survive an interruption."""
    times_file = command.out / TIMES_FILE
    seconds: dict[str, float] = read_json(times_file) if times_file.exists() else {}
    write_json(times_file, seconds)
    started_before = {"cache": command.out / "cache", "train": command.out / "train" / "run.json"}
    for name, words in _stages(command).items():
        if name in seconds:
            continue
        resuming = name in started_before and started_before[name].exists()
        print(f"\n$ saelab {' '.join(words)}{' --resume' if resuming else ''}", flush=True)
        start = time.monotonic()
        run_command(words[0], words[1:] + (["--resume"] if resuming else []))
        seconds[name] = time.monotonic() - start
        write_json(times_file, seconds)
    return seconds


def _dictionary_folder(command: QuickstartCommand) -> Path:
    name = f"topk-d{command.d_sae}-k{command.k}-s0"
    return command.out / "train" / "dictionaries" / name


def _report(command: QuickstartCommand, seconds: dict[str, float]) -> dict[str, Any]:
    from saelab.activation_cache import open_cache
    from saelab.dictionary import load_dictionary
    from saelab.evaluation_result import read_evaluation_result

    folder = _dictionary_folder(command)
    saved = load_dictionary(folder)
    result = read_evaluation_result(folder / "evals" / "core.json")
    cache = open_cache(command.out / "cache", verify=False)
    report = new_manifest(
        KIND,
        SCHEMA_VERSION,
        seed=0,
        config={},
        made_from={"dictionary_hash": saved.content_hash, "cache_hash": cache.content_hash},
    )
    return report | {
        "model": saved.model_name,
        "hook_point": saved.hook_point,
        "n_tokens_cached": cache.n_rows,
        "n_rows_excluded": cache.excluded,
        "n_tokens_trained": saved.manifest["config"]["n_tokens"],
        "d_sae": saved.dictionary.d_sae,
        "k": saved.dictionary.k,
        "fvu": result.value("fvu"),
        "explained_variance": result.value("explained_variance"),
        "l0": result.value("l0_mean"),
        "loss_recovered_zero": result.value("loss_recovered_zero"),
        "loss_recovered_mean": result.value("loss_recovered_mean"),
        "kl": result.value("kl"),
        "dead_fraction": result.value("dead_fraction"),
        **{f"seconds_{name}": round(value, 1) for name, value in seconds.items()},
        "dictionary": str(folder),
        "evaluation_page": str(folder / "evals" / "core.html"),
    }


def _show(command: QuickstartCommand, report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measured on held-out text", "value", title="quickstart")
    shown = (
        "fvu",
        "explained_variance",
        "l0",
        "loss_recovered_zero",
        "loss_recovered_mean",
        "kl",
        "dead_fraction",
        "seconds_cache",
        "seconds_train",
        "seconds_eval",
    )
    for name in shown:
        table.add_row(name, f"{report[name]:.4g}")
    Console().print(table)
    folder = report["dictionary"]
    print(f"dictionary   {folder}")
    print(f"evaluation   {report['evaluation_page']}")
    print(f"curves       {command.out / 'train' / 'training.html'}")
    print(f"report       {command.out / REPORT_FILE}")
    print("\nNext:")
    print(f"  saelab info {folder}")
    print(f"  saelab train sweep --cache {command.out / 'cache'} --out runs/sweep")
    print("  saelab eval core runs/sweep/dictionaries/*")
