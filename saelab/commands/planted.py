"""`saelab planted [PRESET…]`: plant features, train every method on them, score what they recover.

It runs the sub-commands a person would type, `synthetic`, `train` with the recipe `planted` and
`eval recovery`, one preset after another; the score cards are side by side in its folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saelab.cli import run_command
from saelab.config import Within, parse_arguments, problems_in
from saelab.errors import ConfigError
from saelab.formats.files import remedy_when_full
from saelab.formats.lock import writer_lock
from saelab.synthetic.config import PlantedConfig
from saelab.synthetic.presets import LATENTS_PER_FEATURE, PRESETS, find_preset

BATCH_ROWS = 512
RECIPE = "planted"


@dataclass(frozen=True, kw_only=True)
class PlantedCommand:
    """Train methods on planted features and score what they recover, preset by preset."""

    presets: tyro.conf.Positional[tuple[str, ...]] = tuple(PRESETS)
    """Presets of `saelab synthetic`, one after another."""
    out: Path = Path("runs/planted")
    """Folder for everything; each preset gets a folder in it."""
    methods: tuple[str, ...] = ()
    """Training methods. None given: all that the recipe `planted` names."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the initial weights; scores are means over them."""
    n_steps: Annotated[int, Within(1)] = 8000
    """Steps of 512 rows. The scores in the literature are of 24,000."""
    planted_seed: int = 0
    """Seed of the features and rows."""
    threads: Annotated[int, Within(1)] = 1
    """Processor threads to compute with; matrices this small gain nothing from more."""
    resume: bool = False
    """Go on with what an interrupted call left in the folder."""
    overwrite: bool = False
    """Delete what an earlier call made and start over."""

    def __post_init__(self) -> None:
        empty = [name for name in ("presets", "seeds") if not getattr(self, name)]
        problems = problems_in(self) + [f"{name} is empty; give at least one" for name in empty]
        if self.resume and self.overwrite:
            problems.append("--resume and --overwrite exclude each other: give one of them")
        if problems:
            raise ConfigError(problems)


CONFIG = PlantedCommand


def completion_values() -> list[str]:
    """Words that may follow `saelab planted`."""
    return list(PRESETS)


def main(arguments: Sequence[str]) -> None:
    """Run the stages of every preset."""
    command = parse_arguments(PlantedCommand, arguments, program="saelab planted")
    planted = {name: find_preset(name) for name in command.presets}
    existing = [name for name in planted if (command.out / name).exists()]
    if existing and not (command.resume or command.overwrite):
        raise ConfigError(
            f"{command.out / existing[0]} already exists: give --resume to go on with it, "
            "--overwrite to delete what is there, or another --out"
        )
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(command.threads)
    try:
        with writer_lock(command.out), remedy_when_full("go on with --resume"):
            for name, config in planted.items():
                _run_preset(command, name, config)
    finally:
        torch.set_num_threads(threads)


def _run_preset(command: PlantedCommand, name: str, config: PlantedConfig) -> None:
    folder = command.out / name
    print(f"\n{name}: {folder}")
    cache = folder / "cache"
    if command.overwrite or not _is_complete(cache / "planted" / "manifest.json"):
        words = ["synthetic", name, str(cache), "--seed", str(command.planted_seed)]
        _run([*words, *(["--overwrite"] if cache.exists() else [])])
    run = folder / "train"
    k, d_sae = _mean_l0(config), LATENTS_PER_FEATURE[name] * config.n_features
    words = ["train", RECIPE, "--cache", str(cache), "--out", str(run)]
    words += ["--d-sae", str(d_sae), "--k", str(k), "--seeds", *map(str, command.seeds)]
    words += ["--n-tokens", str(command.n_steps * BATCH_ROWS), "--batch-rows", str(BATCH_ROWS)]
    if k * BATCH_ROWS < d_sae:
        # A batch has fewer active pairs than there are latents: some get none.
        words += ["--options.feature-choice.smallest-budget", "0"]
    if command.methods:
        words += ["--methods", *command.methods]
    if (run / "run.json").exists():
        words.append("--overwrite" if command.overwrite else "--resume")
    _run(words)
    dictionaries = sorted(str(path) for path in (run / "dictionaries").iterdir())
    _run(["eval", "recovery", *dictionaries, "--card", str(folder), "--overwrite"])


def _is_complete(manifest: Path) -> bool:
    from saelab.cache.format import read_cache_manifest

    return manifest.exists() and read_cache_manifest(manifest)["status"] == "complete"


def _mean_l0(config: PlantedConfig) -> int:
    from saelab.synthetic.streams import feature_frequencies

    return max(1, round(float(feature_frequencies(config).sum())))


def _run(words: list[str]) -> None:
    run_command(words[0], words[1:])
