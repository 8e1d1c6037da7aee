"""`saelab eval SUITE DICTIONARY…`: run an evaluation suite on saved dictionaries."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelab.config import from_plain, option_strings, to_plain
from saelab.errors import ConfigError, did_you_mean
from saelab.formats.evaluation_result import EvaluationResult

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
        "saelab.evals.supervised.suite",
        "beside the best dictionary that labels can give, on tasks with known attributes",
    ),
    "steering": (
        "saelab.evals.steering.suite",
        "size and consistency of a latent's effect on the logits in arbitrary contexts",
    ),
    "replacement": (
        "saelab.evals.replacement.suite",
        "a set of dictionaries spliced into one pass, such as a transcoder for each layer",
    ),
    "crosscoder": (
        "saelab.evals.crosscoder.suite",
        "which latents of a crosscoder are shared, which dedicated to one layer or model",
    ),
    "description-length": (
        "saelab.evals.description_length.suite",
        "bits per token that the codes take, beside the activations themselves at equal error",
    ),
    "probing": (
        "saelab.evals.probing.suite",
        "what linear probes read off a few latents of labelled text, beside probes on activations",
    ),
    "absorption": (
        "saelab.evals.absorption.suite",
        "whether latents of first letters are silent where others carry the letter",
    ),
    "meta-structure": (
        "saelab.evals.meta_structure.suite",
        "how much of the decoder rows a dictionary of those rows explains, from weights alone",
    ),
    "scr-tpp": (
        "saelab.evals.scr_tpp.suite",
        "whether ablating a concept's latents removes that concept from probes, and only that",
    ),
    "activation-sparsity": (
        "saelab.evals.activation_sparsity.suite",
        "firing latents, and neurons of the MLPs, that can be dropped at 1 % more perplexity",
    ),
    "unlearning": (
        "saelab.evals.unlearning.suite",
        "whether clamping a topic's latents raises the loss on the topic and on nothing else",
    ),
    "ravel": (
        "saelab.evals.ravel.suite",
        "whether latents exchange one attribute of an entity and no other",
    ),
    "compare": (
        "saelab.evals.compare.suite",
        "training methods in one report, from what the other suites say (or `saelab compare`)",
    ),
}
"""By name, the module that holds its `SUITE`, and its line in the help: no suite is imported
before it is run."""
ALL = "all"
"""Word in place of a suite's name: every suite."""


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
            f"  {ALL:<{width}}  every suite that the dictionaries and their model can carry",
            "",
            "`saelab eval SUITE --help` lists a suite's options.",
        ]
    )


def completion_values() -> list[str]:
    """Words that may follow `saelab eval`."""
    return [*SUITES, ALL]


def completion_options() -> list[str]:
    """Options that may follow `saelab eval SUITE`: those of every suite."""
    suites = map(_suite, SUITES)
    return sorted({option for s in suites for option in option_strings(s.Command or s.Config)})


def evaluate(
    suite: str, dictionaries: Path | Sequence[Path], **settings: Any
) -> list[EvaluationResult]:
    """Run an evaluation suite on saved dictionaries, as `saelab eval` does.

    Results are written beside each dictionary, or to `out`; what lies there with the same settings
    is read instead of measured again.

    Args:
        suite: a suite's name, as typed after `saelab eval`.
        dictionaries: a dictionary's folder, or several.
        settings: of the suite, by the names that `saelab eval SUITE --help` lists.

    Returns:
        A result per dictionary: numbers with units and definitions, charts, tables.

    Raises:
        ConfigError: no such suite or setting, or a result of other settings.
        SaelabError: whatever the suite refuses.

    Example:
        >>> [result] = saelab.evaluate("recovery", planted_dictionary, n_rows=500)
        >>> 0 <= result.value("frr_090") <= 1
        True
    """
    chosen = _suite(suite)
    folders = [dictionaries] if isinstance(dictionaries, str | Path) else dictionaries
    plain = {name: to_plain(value) for name, value in settings.items()}
    config = from_plain(chosen.Config, plain, f"settings of the suite {suite}")
    return chosen.run([Path(folder) for folder in folders], config)


def main(arguments: Sequence[str]) -> None:
    """Run the named suite.

    Raises:
        ConfigError: no suite of that name.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
    elif arguments[0] == ALL:
        from .all_suites import main as run_all

        run_all(arguments[1:], {name: _suite(name) for name in SUITES})
    else:
        from .terminal import run_command

        run_command(_suite(arguments[0]), arguments[1:])


def _suite(name: str) -> Any:
    if name not in SUITES:
        raise ConfigError(
            f"unknown evaluation suite {name!r}; {did_you_mean(name, [*SUITES, ALL])}"
        )
    return importlib.import_module(SUITES[name][0]).SUITE
