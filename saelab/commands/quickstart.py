"""`saelab quickstart`: cache, train, judge and read a first dictionary, offline.

It runs the same sub-commands a person would type, and gathers their figures in `report.json`. An
interrupted quickstart goes on where it stopped when it is started again with --resume.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.cli import run_command
from saelab.config import parse_arguments, to_plain
from saelab.errors import ArtifactError, ConfigError
from saelab.features.schema import STORE_FILE
from saelab.formats.files import remedy_when_full
from saelab.formats.lock import writer_lock
from saelab.formats.manifest import new_manifest, write_manifest
from saelab.formats.run import RUN_FILE, read_run

from .quickstart_folder import (
    CACHE_FOLDER,
    REPORT_FILE,
    STAGES,
    TRAIN_FOLDER,
    QuickstartFolder,
    prepare,
)

KIND = "quickstart_report"
SHOWN = (
    "fvu",
    "explained_variance",
    "l0",
    "loss_recovered_zero",
    "loss_recovered_mean",
    "kl",
    "dead_fraction",
)
SHOWN_OF_THE_RUN = (
    "seconds_cache",
    "seconds_train",
    "seconds_eval",
    "seconds_features",
    "seconds_total",
    "peak_memory_gb",
)


@dataclass(frozen=True, kw_only=True)
class QuickstartCommand:
    """Cache, train, judge and read a first dictionary on the embedded model; needs no network."""

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
    feature_tokens: int = 200_000
    """Tokens to read every feature on, for the browser."""
    resume: bool = False
    """Go on with an interrupted quickstart."""
    overwrite: bool = False
    """Delete what an earlier quickstart made in the folder and start anew."""

    def __post_init__(self) -> None:
        least = {
            "cache_tokens": 8192,
            "train_tokens": 4096,
            "d_sae": 1,
            "k": 1,
            "eval_tokens": 4096,
            "feature_tokens": 4096,
        }
        problems = [
            f"{name} is {getattr(self, name)}; it must be at least {value}"
            for name, value in least.items()
            if getattr(self, name) < value
        ]
        if self.k > self.d_sae:
            problems.append(
                f"k = {self.k} is more than d_sae = {self.d_sae}: a token cannot have more active "
                "latents than there are"
            )
        if self.resume and self.overwrite:
            problems.append("--resume and --overwrite exclude each other: give one of them")
        if problems:
            raise ConfigError(problems)

    def settings(self) -> dict[str, Any]:
        """What decides the result, as plain values: an interrupted run goes on with the same."""
        plain = to_plain(self)
        return {name: plain[name] for name in plain if name not in ("out", "resume", "overwrite")}


CONFIG = QuickstartCommand


def main(arguments: Sequence[str]) -> None:
    """Run the stages and report."""
    command = parse_arguments(QuickstartCommand, arguments, program="saelab quickstart")
    with writer_lock(command.out), remedy_when_full("go on with --resume"):
        folder = prepare(
            command.out, command.settings(), resume=command.resume, overwrite=command.overwrite
        )
        for name in STAGES:
            if name not in folder.state["finished"]:
                _run_stage(command, folder, name)
        report = _report(command, folder)
        write_manifest(command.out / REPORT_FILE, report)
    _show(command, report)


def _run_stage(command: QuickstartCommand, folder: QuickstartFolder, name: str) -> None:
    words = _words(command, name)
    started = {
        "cache": command.out / CACHE_FOLDER,
        "train": command.out / TRAIN_FOLDER / RUN_FILE,
    }
    if name in started and started[name].exists():
        words.append("--resume")
    print(f"\n$ saelab {' '.join(words)}", flush=True)
    with folder.stage(name):
        run_command(words[0], words[1:])


def _words(command: QuickstartCommand, name: str) -> list[str]:
    """The sub-command a person would type for a stage."""
    cache, train = command.out / CACHE_FOLDER, command.out / TRAIN_FOLDER
    if name == "cache":
        # The embedded text has 237 long documents: a window of each shows more of them.
        window = "2048" if command.cache_tokens <= 400_000 else "None"
        return [
            "cache",
            str(cache),
            *("--n-tokens", str(command.cache_tokens)),
            *("--text.max-tokens-per-document", window),
        ]
    if name == "train":
        return [
            "train",
            "quickstart",
            *("--cache", str(cache)),
            *("--out", str(train)),
            *("--n-tokens", str(command.train_tokens)),
            *("--d-sae", str(command.d_sae)),
            *("--k", str(command.k)),
        ]
    if name == "features":
        return [
            "features",
            str(_dictionary_folder(command)),
            *("--n-tokens", str(command.feature_tokens)),
            "--overwrite",
        ]
    return [
        "eval",
        "core",
        str(_dictionary_folder(command)),
        *("--n-tokens", str(command.eval_tokens)),
        *("--n-loss-tokens", str(command.eval_tokens // 4)),
        "--overwrite",
    ]


def _dictionary_folder(command: QuickstartCommand) -> Path:
    """Where the finished run says that its dictionary is."""
    run = read_run(command.out / TRAIN_FOLDER)
    dictionaries = run.dictionaries()
    if len(dictionaries) != 1:
        raise ArtifactError(f"{run.path} names {len(dictionaries)} dictionaries; one was expected")
    return next(iter(dictionaries.values())).folder


def _report(command: QuickstartCommand, stages: QuickstartFolder) -> dict[str, Any]:
    from saelab.cache.reader import open_cache
    from saelab.dictionary import load_dictionary
    from saelab.formats.evaluation_result import read_evaluation_result

    folder = _dictionary_folder(command)
    saved = load_dictionary(folder)
    result = read_evaluation_result(folder / "evals" / "core.json")
    cache = open_cache(command.out / CACHE_FOLDER, verify=False)
    report = new_manifest(
        KIND,
        seed=0,
        config=command.settings(),
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
        **{f"seconds_{name}": round(stages.seconds[name], 1) for name in STAGES},
        "seconds_total": round(sum(stages.seconds.values()), 1),
        "peak_memory_gb": round(stages.state["peak_memory_gb"], 2),
        "dictionary": str(folder),
        "evaluation_page": str(folder / "evals" / "core.html"),
        "features": str(folder / STORE_FILE),
    }


def _show(command: QuickstartCommand, report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measured on held-out text", "value", title="quickstart")
    for name in (*SHOWN, *SHOWN_OF_THE_RUN):
        value = report[name]
        table.add_row(name, "undefined" if value is None else f"{value:.4g}")
        if name == SHOWN[-1]:
            table.add_section()
    for reason, count in report["n_rows_excluded"].items():
        table.add_row(f"rows excluded ({reason})", f"{count:,} of the cache's text")
    Console().print(table)
    folder = report["dictionary"]
    print(f"dictionary   {folder}")
    print(f"evaluation   {report['evaluation_page']}")
    print(f"features     {report['features']}")
    print(f"curves       {command.out / TRAIN_FOLDER / 'training.html'}")
    print(f"report       {command.out / REPORT_FILE}")
    saelab = _as_typed()
    print("\nNext:")
    print(f"  {saelab} dashboard {command.out}")
    print(f"  {saelab} info {folder}")
    print(f"  {saelab} train sweep --cache {command.out / CACHE_FOLDER} --out runs/sweep")
    print(f"  {saelab} eval core runs/sweep/dictionaries/*")


def _as_typed() -> str:
    """How this command can be typed again: by its name, or by its path where that is not known."""
    started = Path(sys.argv[0])
    known = shutil.which("saelab")
    return "saelab" if known or started.name != "saelab" else str(started)
