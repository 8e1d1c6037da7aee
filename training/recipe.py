"""Recipes as files: the settings of one run, or of several parts that are trained in turn.

A recipe with `parts` names runs that share everything but what each part replaces, such as the
hook point. Each part is an ordinary run in its folder. All are checked before the first is trained,
so that a missing hook point shows at once.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

from saelab.config import from_plain, to_plain
from saelab.errors import ConfigError, shown
from saelab.formats.run import RUN_FILE
from saelab.formats.yaml_files import read_yaml

from .config import TrainConfig, without_freeze_decoder
from .run import open_fitting_cache, train
from .run_folder import check_folder
from .schedule import OnLonger

logger = logging.getLogger(__name__)

PARTS = "parts"
WHOLE = ""
"""Name of the only part of a recipe that has no parts: its run lies in `out` itself."""
PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def load_recipe(path: Path) -> dict[str, TrainConfig]:
    """Read a recipe, strictly.

    Returns:
        The settings of each part by name, in the order of the file, all with the `out` of the whole
        recipe; a recipe without parts has one part, named `WHOLE`.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit: everything wrong at once.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or PARTS not in content:
        return {WHOLE: from_plain(TrainConfig, without_freeze_decoder(content), str(path))}
    shared = {key: value for key, value in content.items() if key != PARTS}
    parts = content[PARTS]
    problems = _problems_with_parts(parts, str(path))
    if problems:
        raise ConfigError(problems)
    configs: dict[str, TrainConfig] = {}
    settings: dict[str, Any] = {name: changes or {} for name, changes in parts.items()}
    for name, changes in settings.items():
        origin = f"{path}, part {name}"
        try:
            merged = without_freeze_decoder(_merged(shared, changes))
            configs[name] = from_plain(TrainConfig, merged, origin)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return configs


def in_own_folders(parts: dict[str, TrainConfig]) -> dict[str, TrainConfig]:
    """The parts, each with the folder of its run: `out`/name, or `out` where there is one part."""
    return {
        name: config if name == WHOLE else dataclasses.replace(config, out=config.out / name)
        for name, config in parts.items()
    }


def recipe_of(parts: dict[str, TrainConfig]) -> Any:
    """Plain values that, as YAML, `load_recipe` reads back to the same parts.

    Args:
        parts: as `load_recipe` gives them, with the `out` of the whole recipe.
    """
    if list(parts) == [WHOLE]:
        return to_plain(parts[WHOLE])
    plain = {name: to_plain(config) for name, config in parts.items()}
    out = [settings.pop("out") for settings in plain.values()]
    return {"out": out[0], PARTS: plain}


def train_parts(
    parts: dict[str, TrainConfig],
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_longer: OnLonger | None = None,
) -> dict[str, dict[str, Any]]:
    """Train every part that is not complete yet.

    Args:
        parts: settings by name, each with the folder of its own run.
        resume: go on with the parts that were begun, leave complete ones, train the others.
        overwrite: delete what is in the parts' folders first.
        on_longer: as `train` takes it.

    Returns:
        The content of each part's run.json by name.

    Raises:
        SaelabError: in the words of what went wrong; finished work is never touched.
    """
    if list(parts) == [WHOLE]:
        whole = parts[WHOLE]
        return {WHOLE: train(whole, resume=resume, overwrite=overwrite, on_longer=on_longer)}
    begun = {name for name, config in parts.items() if (config.out / RUN_FILE).exists()}
    _check_parts(parts, begun, resume=resume, overwrite=overwrite)
    runs = {}
    for name, config in parts.items():
        logger.info("part %s: %s", name, config.out)
        going_on = resume and name in begun
        runs[name] = train(config, resume=going_on, overwrite=overwrite, on_longer=on_longer)
    return runs


def _problems_with_parts(parts: Any, origin: str) -> list[str]:
    if not isinstance(parts, dict) or not parts:
        return [
            f"{origin}: parts must map the name of each part to its settings (got {shown(parts)})"
        ]
    problems = []
    for name, changes in parts.items():
        if not isinstance(name, str) or not PART_NAME.fullmatch(name):
            problems.append(
                f"{origin}: the part {name!r} cannot be a folder's name: use letters, digits, "
                "'_', '.' and '-'"
            )
        if changes is not None and not isinstance(changes, dict):
            problems.append(
                f"{origin}: the part {name!r} must hold settings (got {shown(changes)})"
            )
        elif changes and "out" in changes:
            problems.append(
                f"{origin}: the part {name!r} names an out of its own; a part lies in out/{name}"
            )
    return problems


def _merged(shared: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with some replaced, inside nested settings too."""
    merged = dict(shared)
    for key, value in changes.items():
        inner = merged.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = _merged(inner, value)
        merged[key] = value
    return merged


def _check_parts(
    parts: dict[str, TrainConfig], begun: set[str], *, resume: bool, overwrite: bool
) -> None:
    out = next(iter(parts.values())).out.parent
    if (out / RUN_FILE).exists():
        raise ConfigError(
            f"{out} holds a run of its own, and this recipe has parts ({', '.join(parts)}): "
            "give another --out"
        )
    if resume and not overwrite and not begun:
        raise ConfigError(f"{out} holds no run to resume: leave out --resume to start one")
    for name, config in parts.items():
        check_folder(config, resume=resume and (name in begun or overwrite), overwrite=overwrite)
        open_fitting_cache(config, verify=False)
