"""`saelab eval SUITE DICTIONARY…`: run an evaluation suite on saved dictionaries."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from saelab.config import option_strings
from saelab.errors import ConfigError, did_you_mean

SUITES = {
    "core": "saelab.evals.core.command",
    "recovery": "saelab.evals.recovery.command",
    "consistency": "saelab.evals.consistency.command",
    "steering": "saelab.evals.steering.command",
    "dark-matter": "saelab.evals.dark_matter.command",
    "supervised": "saelab.evals.supervised.command",
}


USAGE = """usage: saelab eval SUITE DICTIONARY [DICTIONARY ...] [OPTIONS]

Suites:
  core         reconstruction, sparsity, densities, what splicing costs the model, on held-out text
  recovery     which planted features were found, on dictionaries of a `saelab synthetic` cache
  consistency  whether several seeds, or several methods, find the same latents
  dark-matter  what a dictionary does not explain, taken apart: linear and nonlinear error
  supervised   beside the best dictionary that labels can give, on tasks with known attributes
  steering     size and consistency of a latent's effect on the logits in arbitrary contexts

`saelab eval SUITE --help` lists a suite's options."""


def completion_values() -> list[str]:
    """Words that may follow `saelab eval`."""
    return list(SUITES)


def completion_options() -> list[str]:
    """Options that may follow `saelab eval SUITE`: those of every suite."""
    configs = [importlib.import_module(module).CONFIG for module in SUITES.values()]
    return sorted({option for config in configs for option in option_strings(config)})


def main(arguments: Sequence[str]) -> None:
    """Run the named suite.

    Raises:
        ConfigError: no suite of that name.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    suite, *rest = arguments
    if suite not in SUITES:
        raise ConfigError(f"unknown evaluation suite {suite!r}; {did_you_mean(suite, SUITES)}")
    importlib.import_module(SUITES[suite]).main(rest)
