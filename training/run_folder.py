"""Who may use a run's folder: a new run, one being resumed, or one replacing another on demand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from saelab.config import flat, to_plain
from saelab.dictionary.storage import CONFIG_FILE, MANIFEST_FILE, SELF_TEST_FILE, WEIGHTS_FILE
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import TEMPORARY_SUFFIX, hash_of, remove_leftovers
from saelab.formats.run import DICTIONARIES_FOLDER, RUN_FILE, RunManifest, read_run
from saelab.model.identity import model_mismatch

from .config import without_freeze_decoder
from .loop import LoopSettings

METRICS_FILE = "metrics.jsonl"
PAGE_FILE = "training.html"
CHECKPOINT_FOLDER = "checkpoint"
OWN_ENTRIES = (RUN_FILE, METRICS_FILE, PAGE_FILE, CHECKPOINT_FOLDER, DICTIONARIES_FOLDER)
DICTIONARY_FILES = (MANIFEST_FILE, CONFIG_FILE, WEIGHTS_FILE, SELF_TEST_FILE)
"""What a run writes of a dictionary, the manifest first; labels, results and stores are others'."""

WITHOUT_EFFECT = ("out", "device", "checkpoint_every_steps", "wandb_project", "verify")
"""Settings that a resumed run may change: they decide nothing that is computed."""
COMPARED_BY_HASH = ("cache", "error_of", "error_probe", "init_from")
"""Paths: what lies there is compared by its hash, so it may be moved."""
ONLY_WITHOUT_CACHE = ("stream", "stream_pool_rows")


def deciding_settings(plain: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide what a run computes, flat, with dotted names.

    Options of methods that the run does not train, and what only a run without a cache reads,
    decide nothing.
    """
    plain = without_freeze_decoder(plain)
    unread = {*WITHOUT_EFFECT, *COMPARED_BY_HASH}
    if plain.get("cache") is not None:
        unread |= set(ONLY_WITHOUT_CACHE)
    kept = {key: value for key, value in plain.items() if key not in unread}
    if "options" in plain:
        kept["options"] = {name: plain["options"].get(name, {}) for name in plain["methods"]}
    return flat(kept)


def check_folder(config: LoopSettings, *, resume: bool, overwrite: bool) -> RunManifest | None:
    """Make sure that `config.out` is free, or is to be resumed or replaced; touch nothing.

    Returns:
        The run to resume, or None.

    Raises:
        ConfigError: the folder is in use, is not a run, or is a run with other settings.
        ArtifactError: the run's record is damaged or from a newer saelab.
    """
    out = config.out
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: give one of them")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, not a folder: give another --out")
    exists = (out / RUN_FILE).exists()
    if exists and resume:
        run = read_run(out)
        _check_same_settings(run, to_plain(config), to_plain(type(config)()))
        return run
    foreign = _foreign_entries(out)
    if foreign:
        raise ConfigError(
            f"{out} holds files that are not of a saelab run ({', '.join(foreign[:3])}): "
            "give another --out"
        )
    if resume:
        raise ConfigError(f"{out} holds no run to resume: leave out --resume to start one")
    if exists and not overwrite:
        raise ConfigError(
            f"{out} already holds a run: give --resume to go on with it, --overwrite to delete it, "
            "or another --out"
        )
    return None


def clear_folder(out: Path) -> None:
    """Delete what an earlier run wrote in its folder; `check_folder` has allowed it.

    What people and other commands left beside a dictionary stays: labels, evaluation results and
    feature stores name the dictionary they are of.
    """
    if not out.exists():
        return
    remove_leftovers(out)
    for name in OWN_ENTRIES:
        entry = out / name
        if name == DICTIONARIES_FOLDER:
            _clear_dictionaries(entry)
        elif entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _clear_dictionaries(folder: Path) -> None:
    for dictionary in folder.iterdir() if folder.is_dir() else ():
        files = [dictionary / name for name in DICTIONARY_FILES]
        for path in [*files, *dictionary.glob("layer_*.safetensors")]:
            path.unlink(missing_ok=True)
        if dictionary.is_dir() and not any(dictionary.iterdir()):
            dictionary.rmdir()


def _foreign_entries(out: Path) -> list[str]:
    if not out.exists():
        return []
    return sorted(
        entry.name
        for entry in out.iterdir()
        if entry.name not in OWN_ENTRIES
        and not entry.name.startswith(".")
        and not entry.name.endswith(TEMPORARY_SUFFIX)
    )


def _check_same_settings(run: RunManifest, plain: dict[str, Any], defaults: dict[str, Any]) -> None:
    if not ({"methods", "options"} & plain.keys()) <= run.config.keys() or not run.settings_hash:
        raise ArtifactError(
            f"{run.path} lacks fields of a run's record: start over with --overwrite"
        )
    old, new = deciding_settings(run.config), deciding_settings(plain)
    # A setting that a newer saelab added had its default before.
    defaults = flat(defaults)
    differing = sorted(key for key in old | new if old.get(key, defaults.get(key)) != new.get(key))
    if (run.config.get("init_from") is None) != (plain.get("init_from") is None):
        differing.append("init_from")
    if differing == ["n_tokens"] and "options" in plain:
        if steps_of(plain) > steps_of(run.config):
            return
        raise ConfigError(
            f"{run.folder} is a run of {run.config['n_tokens']:,} tokens, and n_tokens = "
            f"{plain['n_tokens']:,} is no longer one: give --n-tokens {run.config['n_tokens']} to "
            "resume it as it is, or more to make it longer"
        )
    if differing:
        raise ConfigError(
            f"{run.folder} was started with other settings ({', '.join(differing)} differ): resume "
            "with the same recipe and options, or give another --out"
        )


def steps_of(plain: dict[str, Any]) -> int:
    """Steps of the run with these settings."""
    return -(-plain["n_tokens"] // plain["batch_rows"])


def check_same_origin(run: RunManifest, made_from: dict[str, Any]) -> None:
    """Check that a run is resumed on the activations it was started on.

    Raises:
        ConfigError: the cache, the model or the dictionary whose error is learnt was changed.
    """
    # Where adopted caches lie may change; models are compared below.
    apart = {"model_hash", "bos_id", "activations"}
    compared = (run.made_from.keys() & made_from.keys()) - apart
    differing = sorted(
        key for key in compared if hash_of(run.made_from[key]) != hash_of(made_from[key])
    )
    if "model_hash" in run.made_from and model_mismatch(run.made_from, made_from) is not None:
        differing.append("model_hash")
    if differing:
        raise ConfigError(
            f"{run.folder} was started on other activations ({', '.join(differing)} differ): "
            "resume with the cache or model it was started with, or give another --out"
        )
