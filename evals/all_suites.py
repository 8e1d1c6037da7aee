"""`saelab eval all DICTIONARY…`: every suite that the dictionaries and their model can carry.

Suites that refuse, such as one that needs planted features or several seeds, are named with their
reason; the others go on. What is done is kept, so the same command goes on after a kill. Held-out
rows that several suites read are computed once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError, SaelabError, did_you_mean

from .suite import ControlledConfig, Suite, evaluate
from .terminal import show, terminal_table

logger = logging.getLogger(__name__)

PROGRAM = "saelab eval all"


@dataclass(frozen=True, kw_only=True)
class AllConfig(ControlledConfig):
    """Which suites to run on saved dictionaries, and what all of them share."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of dictionaries."""
    suites: tuple[str, ...] = ()
    """Suites to run. Empty: all."""
    skip: tuple[str, ...] = ()
    """Suites to leave out."""


@dataclass(frozen=True)
class SuiteOutcome:
    """What became of one suite."""

    name: str
    seconds: float
    left_out: str
    """Why it has no result; empty: it has."""


def run_all(suites: Sequence[Suite[Any]], config: AllConfig) -> list[SuiteOutcome]:
    """Run suites one after the other with their own settings, and show what each found.

    Raises:
        ConfigError: a dictionary that is none, which no suite could judge.
    """
    from saelab.dictionary.site_rows import rows_kept

    from .subjects import result_folders

    result_folders(config.dictionaries, config.out)
    outcomes = list[SuiteOutcome]()
    with rows_kept():
        for suite in suites:
            logger.info("suite %s", suite.name)
            start, left_out = time.perf_counter(), ""
            try:
                show(suite, evaluate(suite, config.dictionaries, settings_of(suite, config)))
            except SaelabError as error:
                left_out = str(error)
            outcomes.append(SuiteOutcome(suite.name, time.perf_counter() - start, left_out))
    return outcomes


def settings_of(suite: Suite[Any], config: AllConfig) -> Any:
    """A suite's settings: its own, but for those that all share."""
    names = {field.name for field in fields(ControlledConfig)}
    names &= {field.name for field in fields(suite.Config)}
    return replace(suite.Config(), **{name: getattr(config, name) for name in names})


def main(arguments: Sequence[str], suites: Mapping[str, Suite[Any]]) -> None:
    """Run `saelab eval all` with the words after it.

    Raises:
        ConfigError: no dictionary, or a suite that there is not.
    """
    config = parse_arguments(AllConfig, arguments, program=PROGRAM)
    if not config.dictionaries:
        raise ConfigError(f"no dictionary was given: type `{PROGRAM} FOLDER [FOLDER …]`")
    for name in (*config.suites, *config.skip):
        if name not in suites:
            raise ConfigError(f"unknown evaluation suite {name!r}; {did_you_mean(name, suites)}")
    wanted = config.suites or [name for name, suite in suites.items() if suite.folder is None]
    chosen = [suites[name] for name in wanted if name not in config.skip]
    print_outcomes(run_all(chosen, config))


def print_outcomes(outcomes: Sequence[SuiteOutcome]) -> None:
    """Print how long each suite took, and why others were left out."""
    from rich.console import Console

    rows = [
        [each.name, f"{each.seconds:.0f}", each.left_out and f"left out: {each.left_out}"]
        for each in outcomes
    ]
    Console().print(terminal_table("", ["suite", "seconds", ""], rows))
