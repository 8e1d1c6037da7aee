"""The parts of a recipe trained one after another, each a run in its own folder.

All parts are checked before the first is trained, so that a missing hook point shows at once.
"""

from __future__ import annotations

import logging
from typing import Any

from saelab.errors import ConfigError
from saelab.formats.run import RUN_FILE

from .config import TrainConfig
from .recipe import WHOLE
from .run import check_activations, train
from .run_folder import check_folder

logger = logging.getLogger(__name__)


def train_parts(
    parts: dict[str, TrainConfig], *, resume: bool = False, overwrite: bool = False
) -> dict[str, dict[str, Any]]:
    """Train every part that is not complete yet.

    Args:
        parts: settings by name, each with the folder of its own run.
        resume: go on with the parts that were begun, leave complete ones, train the others.
        overwrite: delete what is in the parts' folders first.

    Returns:
        The content of each part's run.json by name.

    Raises:
        SaelabError: in the words of what went wrong; finished work is never touched.
    """
    if list(parts) == [WHOLE]:
        return {WHOLE: train(parts[WHOLE], resume=resume, overwrite=overwrite)}
    begun = {name for name, config in parts.items() if (config.out / RUN_FILE).exists()}
    _check(parts, begun, resume=resume, overwrite=overwrite)
    runs = {}
    for name, config in parts.items():
        logger.info("part %s: %s", name, config.out)
        runs[name] = train(config, resume=resume and name in begun, overwrite=overwrite)
    return runs


def _check(
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
        check_activations(config)
