"""`saelab quickstart`: cache, train, judge, read and explain a first dictionary, offline.

It runs the same sub-commands a person would type, and gathers their figures in `report.json`. An
interrupted quickstart goes on where it stopped when it is started again with --resume.
`quickstart.json` is written before anything else is, so a folder without one was not made by it and
is never resumed in or deleted from.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.cli import run_command
from saelab.config import parse_arguments, to_plain
from saelab.errors import ArtifactError, ConfigError
from saelab.features.schema import STORE_FILE
from saelab.formats.files import TEMPORARY_SUFFIX, remedy_when_full
from saelab.formats.lock import writer_lock
from saelab.formats.manifest import new_manifest, read_manifest, require_fields, write_manifest
from saelab.formats.run import RUN_FILE, read_run

KIND = "quickstart_report"
STATE_KIND = "quickstart_state"
STATE_FILE = "quickstart.json"
REPORT_FILE = "report.json"
CACHE_FOLDER = "cache"
TRAIN_FOLDER = "train"
STAGES = ("cache", "train", "eval", "features", "explain")
SHOWN = ("fvu", "explained_variance", "l0", "loss_recovered_zero", "loss_recovered_mean")
SHOWN += ("kl", "dead_fraction")
SHOWN_OF_THE_RUN = (*(f"seconds_{name}" for name in (*STAGES, "total")), "peak_memory_gb")


@dataclass(frozen=True, kw_only=True)
class QuickstartCommand:
    """Cache, train, judge, read and explain a first dictionary on the embedded model, offline."""

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
    """Delete what an earlier quickstart made in the folder and start over."""

    def __post_init__(self) -> None:
        least = {"cache_tokens": 8192, "train_tokens": 4096, "d_sae": 1, "k": 1}
        least |= {"eval_tokens": 4096, "feature_tokens": 4096}
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
    from saelab.model.devices import bfloat16_is_slow, resolve_device

    cache, train = command.out / CACHE_FOLDER, command.out / TRAIN_FOLDER
    slow = bfloat16_is_slow(resolve_device("auto"))
    if name == "cache":
        # The embedded text has 237 long documents: a window of each shows more of them.
        window = "2048" if command.cache_tokens <= 400_000 else "None"
        n_tokens = ("--n-tokens", str(command.cache_tokens))
        dtype = ("--model-dtype", "float32") if slow else ()
        return ["cache", str(cache), *n_tokens, "--text.max-tokens-per-document", window, *dtype]
    if name == "train":
        settings = {"cache": cache, "out": train, "n-tokens": command.train_tokens}
        settings |= {"d-sae": command.d_sae, "k": command.k}
        settings |= {"product-dtype": "float32"} if slow else {}
        options = (word for key, value in settings.items() for word in (f"--{key}", str(value)))
        return ["train", "quickstart", *options]
    folder = str(_dictionary_folder(command))
    if name == "features":
        n_tokens = ("--n-tokens", str(command.feature_tokens))
        return ["features", folder, *n_tokens, "--overwrite"]
    if name == "explain":
        return ["explain", folder]
    n_tokens = ("--n-tokens", str(command.eval_tokens))
    n_loss_tokens = ("--n-loss-tokens", str(command.eval_tokens // 4))
    return ["eval", "core", folder, *n_tokens, *n_loss_tokens, "--overwrite"]


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
        **{name: result.value("l0_mean" if name == "l0" else name) for name in SHOWN},
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
    # By its path where its name is not known to the shell.
    started = Path(sys.argv[0])
    known = shutil.which("saelab") or started.name != "saelab"
    saelab = "saelab" if known else str(started)
    print("\nNext:")
    print(f"  {saelab} dashboard {command.out}")
    print(f"  {saelab} info {folder}")
    print(f"  {saelab} train sweep --cache {command.out / CACHE_FOLDER} --out runs/sweep")
    print(f"  {saelab} eval core runs/sweep/dictionaries/*")


class QuickstartFolder:
    """A quickstart's folder, opened by `prepare`.

    `state` has the settings, the finished stages, the seconds spent in each stage (interrupted
    attempts included), and the largest peak memory of an attempt, in GB.
    """

    def __init__(self, out: Path, state: dict[str, Any]):
        self.out = out
        self.state = state

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage so far."""
        return self.state["seconds"]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a stage, and take it for finished when nothing was raised."""
        start = time.monotonic()
        try:
            yield
            self.state["finished"].append(name)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            self.state["peak_memory_gb"] = max(self.state["peak_memory_gb"], _peak_memory_gb())
            self.save()

    def save(self) -> None:
        """Write the state to disk."""
        write_manifest(self.out / STATE_FILE, self.state)


def prepare(
    out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool
) -> QuickstartFolder:
    """Open the folder, new or again.

    Raises:
        ConfigError: it is in use, is not a quickstart's, or was started with other settings.
        ArtifactError: its state is damaged.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; quickstart makes a folder: give another --out")
    state = new_manifest(STATE_KIND, seed=0, config=settings, made_from={})
    state |= {"finished": [], "seconds": {}, "peak_memory_gb": 0.0}
    fresh = QuickstartFolder(out, state)
    entries = {path.name for path in out.iterdir()} if out.exists() else set()
    entries = {name for name in entries if not name.endswith(TEMPORARY_SUFFIX)}
    # A first stage that failed at once leaves only the state: nothing that could be lost.
    if entries <= {STATE_FILE}:
        fresh.save()
        return fresh
    if not (resume or overwrite):
        raise ConfigError(
            f"{out} already exists: give --resume to go on with it, --overwrite to start over, "
            "or another --out"
        )
    if STATE_FILE not in entries:
        raise ConfigError(
            f"{out} was not made by quickstart (it has no {STATE_FILE}): give another --out"
        )
    if resume:
        return QuickstartFolder(out, _state_to_resume(out, settings))
    foreign = sorted(entries - {STATE_FILE, REPORT_FILE, CACHE_FOLDER, TRAIN_FOLDER})
    if foreign:
        raise ConfigError(
            f"{out} also holds {foreign[0]!r}, which quickstart did not make: it is left alone; "
            "give another --out, or move that away"
        )
    # The state first: a kill in between must not leave stages that are named finished and are not.
    fresh.save()
    (out / REPORT_FILE).unlink(missing_ok=True)
    for name in (TRAIN_FOLDER, CACHE_FOLDER):
        if (out / name).exists():
            shutil.rmtree(out / name)
    return fresh


def _peak_memory_gb() -> float:
    """The most resident memory this process has held, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def _state_to_resume(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    path = out / STATE_FILE
    state = read_manifest(path, STATE_KIND)
    require_fields(
        state, {"config": dict, "finished": list, "seconds": dict, "peak_memory_gb": float}, path
    )
    require_fields(state["seconds"], dict.fromkeys(state["finished"], float), path)
    if not set(state["seconds"]) <= set(STAGES):
        raise ArtifactError(f"{path} names stages that quickstart does not have: it was edited")
    differing = [
        f"{name} was {state['config'].get(name)}, is {value}"
        for name, value in settings.items()
        if state["config"].get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"{out} was started with other settings ({'; '.join(differing)}): resume with the "
            "same, or start over with --overwrite"
        )
    return state
