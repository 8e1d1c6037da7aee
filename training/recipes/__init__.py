"""The training recipes that ship with saelab, as YAML files; `saelab recipes` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saelab.config import parse_arguments
from saelab.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class RecipesCommand:
    """List the shipped training recipes; `saelab train NAME --print-config` shows one."""


CONFIG = RecipesCommand


def main(arguments: Sequence[str]) -> None:
    """Print each recipe with the first line of its header comment."""
    parse_arguments(RecipesCommand, arguments, program="saelab recipes")
    recipes = shipped_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        first_line = path.read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:<{width}}  {first_line.lstrip('# ')}")


def shipped_recipes() -> dict[str, Path]:
    """Path of every shipped recipe by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe: a shipped one by name, or a path.

    Raises:
        ConfigError: there is no such recipe.
    """
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.is_file():
        return path
    raise ConfigError(
        f"recipe {name!r} is neither a file nor shipped; {did_you_mean(name, shipped)}"
    )
