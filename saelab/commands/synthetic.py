"""`saelab synthetic PRESET OUT`: an activation cache of planted features with known answers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.synthetic.config import PlantedConfig
from saelab.synthetic.presets import LATENTS_PER_FEATURE, PRESETS, find_preset

PROGRAM = "saelab synthetic"
EPOCHS = 20
"""Passes over the pool in the command that is suggested."""


@dataclass(frozen=True, kw_only=True)
class SyntheticCommand:
    """Write an activation cache of planted features with known answers.

    Presets, from which the options start: imbalanced (rows of 3 and of 20 features), geometric (a
    long tail of frequencies), resonance (equal frequencies; vary --d-in and --support.active),
    cooccurrence (vary --partner-probability), smoke (small).
    """

    preset: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PRESET")] = None
    """A preset, which gives the options below their defaults; it must be the first word."""
    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="OUT")] = None
    """Folder to write to; the cache is the folder `planted` in it."""
    config: Annotated[PlantedConfig, tyro.conf.arg(name="")] = field(
        default_factory=PlantedConfig, metadata={"flatten": True}
    )
    """What to plant."""
    overwrite: bool = False
    """Replace the cache that is there."""


CONFIG = SyntheticCommand


def completion_values() -> list[str]:
    """Words that may follow `saelab synthetic`."""
    return list(PRESETS)


def main(arguments: Sequence[str]) -> None:
    """Write the cache, and print what is in it and what to type next."""
    command = parse_command(arguments)
    if command.preset is None or command.out is None:
        missing = "folder" if command.preset else "preset"
        raise ConfigError(
            f"no {missing} was given: type `{PROGRAM} PRESET OUT`; presets: {', '.join(PRESETS)}"
        )
    from saelab.synthetic.cache import write_planted_cache

    folder = write_planted_cache(command.out, command.config, overwrite=command.overwrite)
    for line in report(command.preset, folder, command.config):
        print(line)


def parse_command(arguments: Sequence[str]) -> SyntheticCommand:
    """Read the preset, where one is named, and then the options over it."""
    preset = next((word for word in arguments[:1] if not word.startswith("-")), None)
    default = SyntheticCommand()
    if preset is not None:
        default = SyntheticCommand(preset=preset, config=find_preset(preset))
    command = parse_arguments(SyntheticCommand, arguments, program=PROGRAM, default=default)
    if command.preset != preset:
        raise ConfigError(
            f"the preset {command.preset!r} comes after an option; it gives the options their "
            f"defaults, so it must be the first word: {PROGRAM} {command.preset} …"
        )
    return command


def report(preset: str, folder: Path, config: PlantedConfig) -> list[str]:
    """What was written, how hard it is, and the commands that train and judge on it."""
    from saelab.synthetic.generator import planted_features
    from saelab.synthetic.streams import feature_frequencies
    from saelab.synthetic.truth import chance_cosine, coherence

    features, frequencies = planted_features(config), feature_frequencies(config)
    d_sae = LATENTS_PER_FEATURE[preset] * config.n_features
    active, run = float(frequencies.sum()), f"runs/{preset}"
    train = [
        *("saelab", "train", "--cache", str(folder), "--out", run, "--d-sae", str(d_sae)),
        *("--k", str(max(1, round(active))), "--batch-rows", str(min(512, config.n_rows))),
        *("--n-tokens", str(EPOCHS * config.n_rows)),
    ]
    return [
        f"cache: {folder}, {config.n_rows:,} rows of width {config.d_in}",
        f"planted: {config.n_features:,} features, {active:.3g} active in a row on average, "
        f"frequencies {float(frequencies.min()):.3g} to {float(frequencies.max()):.3g}",
        f"coherence: {coherence(features):.3f}, the largest |cosine| of two features",
        f"chance: {chance_cosine(features, d_sae):.3f}, the mean largest cosine of a feature with "
        f"{d_sae:,} random directions",
        "next:",
        f"  {shlex.join(train)}",
        f"  saelab eval recovery {shlex.quote(run)}/dictionaries/*",
    ]
