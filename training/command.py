"""`saelab train [RECIPE]`: train dictionaries, then show how they did."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from saelab.config import parse_arguments, to_yaml
from saelab.errors import ConfigError

from .config import TrainConfig
from .recipe import WHOLE, in_own_folders, load_recipe, recipe_of, train_parts
from .recipes import find_recipe, shipped_recipes
from .schedule import OnLonger


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train dictionaries on a cache, or straight on the model's activations."""

    recipe: tyro.conf.Positional[str | None] = None
    """A shipped recipe's name or a YAML file; every option below overrides it, in all its parts."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(
        default_factory=TrainConfig, metadata={"flatten": True}
    )
    """Settings of the run."""
    resume: bool = False
    """Go on from the newest checkpoint of the run in `--out`, for longer with more `--n-tokens`."""
    on_longer: OnLonger | None = None
    """What schedules do where `--resume` comes with more `--n-tokens` than the run had. "redecay":
    the rate is at its peak again and falls at the end of the added steps. "extend": all goes by
    the new length from here on. None: redecay."""
    overwrite: bool = False
    """Delete the run in `--out` and start over."""
    print_config: bool = False
    """Print the settings as YAML, a recipe in its own right, and do nothing."""


CONFIG = TrainCommand


def completion_values() -> list[str]:
    """Words that may follow `saelab train`."""
    return list(shipped_recipes())


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    commands = parse_commands(arguments)
    parts = {name: command.config for name, command in commands.items()}
    command = next(iter(commands.values()))
    if command.print_config:
        print(to_yaml(recipe_of(parts)), end="")
        return
    started = time.monotonic()
    parts = in_own_folders(parts)
    runs = train_parts(
        parts, resume=command.resume, overwrite=command.overwrite, on_longer=command.on_longer
    )
    for name, config in parts.items():
        title = command.recipe if name == WHOLE else f"{command.recipe}: {name}"
        show(title, config, runs[name])
    print(f"{time.monotonic() - started:.0f} s in all")


def parse_commands(arguments: Sequence[str]) -> dict[str, TrainCommand]:
    """Read the recipe, where one is named, and then the options over each of its parts.

    Returns:
        The command for each part by name; they differ in nothing but `config`.
    """
    recipe = next((word for word in arguments[:1] if not word.startswith("-")), None)
    parts = {WHOLE: TrainConfig()} if recipe is None else load_recipe(find_recipe(recipe))
    commands = {}
    for name, config in parts.items():
        default = TrainCommand(recipe=recipe, config=config)
        command = parse_arguments(TrainCommand, arguments, program="saelab train", default=default)
        if command.recipe != recipe:
            raise ConfigError(
                f"the recipe {command.recipe!r} comes after an option; it is read first, so it "
                f"must be the first word: saelab train {command.recipe} …"
            )
        commands[name] = command
    return commands


def show(title: str | None, config: TrainConfig, run: dict[str, Any]) -> None:
    """Print the table of dictionaries and the loss curve, and write the curves as HTML."""
    from rich.console import Console
    from rich.table import Table

    from .curves import sparkline, write_curves
    from .run import FINAL_CHECK_ROWS

    page, losses = write_curves(config.out)
    table = Table("dictionary", "FVU", "L0", "dead", "loss over the run", title=title)
    for name, figures in run["dictionaries"].items():
        table.add_row(
            name,
            "undefined" if figures["fvu"] is None else f"{figures['fvu']:.4f}",
            f"{figures['l0']:.1f}",
            f"{figures.get('dead_fraction', 0.0):.1%}",
            sparkline(losses[name]),
        )
    Console().print(table)
    print(
        f"{config.n_steps * config.batch_rows:,} rows of training; "
        f"FVU and L0 are of the stream's next {FINAL_CHECK_ROWS:,} rows or so."
    )
    from saelab.cache.rows import excluded_in_words

    excluded = excluded_in_words(run["excluded"])
    print(f"rows left out of training and of every figure: {excluded}")
    print(f"dictionaries: {config.out / 'dictionaries'}")
    print(f"curves: {page}")
