"""`saelab eval SUITE DICTIONARY…`: run an evaluation suite on saved dictionaries."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from saelab.config import option_strings
from saelab.errors import ConfigError, did_you_mean

SUITES = {
    "core": (
        "saelab.evals.core.suite",
        "reconstruction, sparsity, densities, what splicing costs the model, on held-out text",
    ),
    "recovery": (
        "saelab.evals.recovery.suite",
        "which planted features were found, on dictionaries of a `saelab synthetic` cache",
    ),
    "consistency": (
        "saelab.evals.consistency.suite",
        "whether several seeds, or several methods, find the same latents",
    ),
    "dark-matter": (
        "saelab.evals.dark_matter.suite",
        "what a dictionary does not explain, taken apart: linear and nonlinear error",
    ),
    "supervised": (
        "saelab.evals.supervised.command",
        "beside the best dictionary that labels can give, on tasks with known attributes",
    ),
    "steering": (
        "saelab.evals.steering.suite",
        "size and consistency of a latent's effect on the logits in arbitrary contexts",
    ),
}
"""By name, the module that holds its `SUITE`, and its line in the help: no suite is imported
before it is run."""


def usage() -> str:
    """What `saelab eval --help` prints."""
    width = max(map(len, SUITES))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in SUITES.items()]
    return "\n".join(
        [
            "usage: saelab eval SUITE DICTIONARY [DICTIONARY ...] [OPTIONS]",
            "",
            "Suites:",
            *lines,
            "",
            "`saelab eval SUITE --help` lists a suite's options.",
        ]
    )


def completion_values() -> list[str]:
    """Words that may follow `saelab eval`."""
    return list(SUITES)


def completion_options() -> list[str]:
    """Options that may follow `saelab eval SUITE`: those of every suite."""
    modules = [importlib.import_module(module) for module, _ in SUITES.values()]
    return sorted({option for module in modules for option in option_strings(_settings(module))})


def _settings(module: Any) -> Any:
    suite = getattr(module, "SUITE", None)
    return module.CONFIG if suite is None else suite.Command or suite.Config


def main(arguments: Sequence[str]) -> None:
    """Run the named suite.

    Raises:
        ConfigError: no suite of that name.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = arguments
    if name not in SUITES:
        raise ConfigError(f"unknown evaluation suite {name!r}; {did_you_mean(name, SUITES)}")
    module = importlib.import_module(SUITES[name][0])
    if not hasattr(module, "SUITE"):
        module.main(rest)
        return
    from .suite import run_command

    run_command(module.SUITE, rest)
