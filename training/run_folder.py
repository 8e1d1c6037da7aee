"""Who may use a run's folder: a new run, one being resumed, or one replacing another on demand."""

from __future__ import annotations

import shutil
from typing import Any

from saelab.config import config_hash, to_plain
from saelab.errors import ConfigError
from saelab.manifest import read_manifest

from .config import TrainConfig

KIND = "training_run"
SCHEMA_VERSION = 1
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"


def prepare_folder(config: TrainConfig, *, resume: bool, overwrite: bool) -> bool:
    """Make sure that `config.out` is free, or is to be resumed or replaced.

    Returns:
        Whether there is a run to resume.

    Raises:
        ConfigError: the folder is in use, is not a run, or is a run with other settings.
        ArtifactError: the run's record is damaged or from a newer saelab.
    """
    out = config.out
    exists = (out / RUN_FILE).exists()
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: give one of them")
    if exists and not resume and not overwrite:
        raise ConfigError(
            f"{out} already holds a run: give --resume to go on with it, --overwrite to delete it, "
            "or another --out"
        )
    if out.exists() and not exists and any(out.iterdir()):
        raise ConfigError(f"{out} holds files that are not of a saelab run: give another --out")
    if resume and not exists:
        raise ConfigError(f"{out} holds no run to resume: leave out --resume to start one")
    if exists and resume:
        run = read_manifest(out / RUN_FILE, KIND, SCHEMA_VERSION)
        _check_same_config(run, config)
    if exists and overwrite:
        read_manifest(out / RUN_FILE, KIND, SCHEMA_VERSION)
        shutil.rmtree(out)
    return exists and resume


def _check_same_config(run: dict[str, Any], config: TrainConfig) -> None:
    if run["config_hash"] == config_hash(config):
        return
    new = to_plain(config)
    differing = sorted(key for key in new if run["config"].get(key) != new[key])
    raise ConfigError(
        f"{config.out} was started with other settings ({', '.join(differing)} differ): resume "
        "with the same recipe and options, or give another --out"
    )
