"""YAML files of settings, read without trust: no file can take the memory or the patience."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelab.errors import ConfigError

from .files import DEEPEST_JSON, file_problem

LONGEST_YAML = 1 << 18
"""Bytes of a file of settings."""
MOST_YAML_VALUES = 100_000
"""Values of a file of settings, its aliases unfolded."""


def read_yaml(path: Path) -> Any:
    """Parse a YAML file of settings.

    Raises:
        ConfigError: the file is missing, no plain file, not YAML, or a bomb.
    """
    import yaml

    problem = file_problem(path, "YAML file")
    if problem is None and path.stat().st_size > LONGEST_YAML:
        problem = f"{path} has more than {LONGEST_YAML:,} bytes: it is no file of settings"
    if problem is not None:
        hint = "" if path.exists() else "; `saelab recipes` lists the recipes shipped"
        raise ConfigError(problem + hint)
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return {}
        _refuse_bombs(node, {})
        return loader.construct_document(node) or {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ConfigError(f"{path} is not usable YAML: it is nested too deeply") from None
    except Exception as error:  # the library raises any kind for values such as `!!int ''`
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"{path} is not valid YAML: {reason}") from None


def _refuse_bombs(node: Any, known: dict[int, int], depth: int = 0) -> int:
    """How many values a YAML node stands for: a few aliases of aliases can stand for millions.

    Args:
        node: as composed, where every alias is the node that it names.
        known: counts by the id of a node; 0 while it is being counted.
        depth: levels above it.
    """
    if id(node) in known:
        if known[id(node)] == 0:
            raise ValueError("an alias in it names what contains it")
        return known[id(node)]
    if depth > DEEPEST_JSON:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} levels deep")
    known[id(node)] = 0
    children = node.value if isinstance(node.value, list) else []
    pairs = (pair if isinstance(pair, tuple) else (pair,) for pair in children)
    inside = (_refuse_bombs(child, known, depth + 1) for pair in pairs for child in pair)
    count = 1 + sum(inside)
    if count > MOST_YAML_VALUES:
        raise ValueError(f"its aliases stand for more than {MOST_YAML_VALUES:,} values")
    known[id(node)] = count
    return count
