"""Who may use a run's folder: a new run, one being resumed, or one replacing another on demand."""

from __future__ import annotations

import shutil
from typing import Any

from saelab.config import to_plain
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import TEMPORARY_SUFFIX, hash_of
from saelab.formats.manifest import read_manifest

from .config import TrainConfig

KIND = "training_run"
SCHEMA_VERSION = 1
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
PAGE_FILE = "training.html"
CHECKPOINT_FOLDER = "checkpoint"
DICTIONARIES_FOLDER = "dictionaries"
OWN_ENTRIES = (RUN_FILE, METRICS_FILE, PAGE_FILE, CHECKPOINT_FOLDER, DICTIONARIES_FOLDER)

WITHOUT_EFFECT = ("out", "device", "checkpoint_every_steps", "wandb_project")
"""Settings that a resumed run may change: they decide nothing that is computed."""
SITE_SETTINGS = ("reads", "writes")
ERROR_SETTINGS = ("error_component", "error_of", "error_probe")


def settings_hash(config: TrainConfig) -> str:
    """A hash of every setting that decides what a run computes."""
    return hash_of(_deciding(config))


def check_folder(config: TrainConfig, *, resume: bool, overwrite: bool) -> bool:
    """Make sure that `config.out` is free, or is to be resumed or replaced; touch nothing.

    Returns:
        Whether there is a run to resume.

    Raises:
        ConfigError: the folder is in use, is not a run, or is a run with other settings.
        ArtifactError: the run's record is damaged or from a newer saelab.
    """
    out = config.out
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: give one of them")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, not a folder: give another --out")
    foreign = _foreign_entries(config)
    if foreign:
        raise ConfigError(
            f"{out} holds files that are not of a saelab run ({', '.join(foreign[:3])}): "
            "give another --out"
        )
    exists = (out / RUN_FILE).exists()
    if resume and not exists:
        raise ConfigError(f"{out} holds no run to resume: leave out --resume to start one")
    if exists and not resume and not overwrite:
        raise ConfigError(
            f"{out} already holds a run: give --resume to go on with it, --overwrite to delete it, "
            "or another --out"
        )
    if exists and resume:
        _check_same_settings(read_run(config), config)
    return exists and resume


def read_run(config: TrainConfig) -> dict[str, Any]:
    """The run's record.

    Raises:
        ArtifactError: it is damaged or from a newer saelab.
    """
    path = config.out / RUN_FILE
    run = read_manifest(path, KIND, SCHEMA_VERSION)
    if not {"status", "config", "settings_hash"} <= set(run):
        raise ArtifactError(f"{path} lacks fields of a run's record: start anew with --overwrite")
    return run


def clear_folder(config: TrainConfig) -> None:
    """Delete what an earlier run left in `config.out`; `check_folder` has allowed it."""
    if not config.out.exists():
        return
    for entry in config.out.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _foreign_entries(config: TrainConfig) -> list[str]:
    if not config.out.exists():
        return []
    return sorted(
        entry.name
        for entry in config.out.iterdir()
        if entry.name not in OWN_ENTRIES and not entry.name.endswith(TEMPORARY_SUFFIX)
    )


def _check_same_settings(run: dict[str, Any], config: TrainConfig) -> None:
    if run.get("settings_hash") == settings_hash(config):
        return
    old, new = run["config"], _deciding(config)
    differing = sorted(key for key in new if old.get(key) != new[key])
    raise ConfigError(
        f"{config.out} was started with other settings ({', '.join(differing)} differ): resume "
        "with the same recipe and options, or give another --out"
    )


def _deciding(config: TrainConfig) -> dict[str, Any]:
    # Runs begun before there were error components or sites keep the hash they had.
    unused = () if config.error_component is not None else ERROR_SETTINGS
    unused += () if config.reads else SITE_SETTINGS
    return {
        key: value
        for key, value in to_plain(config).items()
        if key not in WITHOUT_EFFECT and key not in unused
    }
