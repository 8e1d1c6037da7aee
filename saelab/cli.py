"""The `saelab` command: finds the sub-command, runs it, turns errors into one line and exit code 2.

Sub-commands are named by module, and imported only when called: `saelab --help` loads none of them.
Each module has `main(arguments) -> None`; what it raises as a `SaelabError` is the user's to read.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import NamedTuple

from .errors import SaelabError, Stopped, did_you_mean, resource_problem


class Command(NamedTuple):
    """A sub-command."""

    module: str
    """Where its `main(arguments)` is."""
    summary: str
    """What `saelab --help` says of it."""


# Name, module inside saelab, summary.
_TABLE = """
quickstart commands.quickstart      cache, train and judge a first SAE, offline
cache      commands.cache           write a language model's activations to disk
synthetic  commands.synthetic       write an activation cache of planted features with known answers
import     commands.import_dictionary open a dictionary that another library saved
train      training.command         train dictionaries on a cache, or on the stream
finetune   training.finetune_command train dictionaries on by what splicing them costs the model
tune       training.tune            find a method's settings, and write them as a recipe
eval       evals.command            judge saved dictionaries
report     commands.report          write the page of an evaluation result again
compare    evals.compare.suite      compare training methods in one report
features   commands.features        read every feature of a run's dictionaries into a store
explain    commands.explain         say in words what features stand for, with scores
dashboard  dashboards.command       browse runs, features and results in the web browser, offline
serve      dashboards.serve_command answer for features over HTTP, as Neuronpedia does, offline
share      dashboards.share_command write a feature or a list of features as one HTML file
planted    commands.planted         train methods on planted features and score the recovery
export     commands.export          write a dictionary in another library's format
push       commands.push            upload a dictionary to the Hugging Face Hub
pull       commands.pull            fetch a dictionary from the Hugging Face Hub
models     commands.models          list the language models at hand
recipes    training.recipes         list the shipped training recipes
info       commands.info            say what an artifact is, from what, and whether intact
completion commands.completion      print a completion script for bash or zsh
"""
COMMANDS: dict[str, Command] = {
    name: Command(f"saelab.{module}", summary)
    for name, module, summary in (line.split(None, 2) for line in _TABLE.strip().splitlines())
}

EXIT_ERROR = 2
EXIT_STOPPED = {"SIGINT": 130, "SIGTERM": 143}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return the process's exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    trusted = "--trust-remote-code" in words
    words = [word for word in words if word not in ("--debug", "--trust-remote-code")]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"saelab {version('saelab')}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Half a surrogate pair in a file, or a character the terminal lacks, ends no command.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(message)s")
    logging.getLogger("saelab").setLevel(logging.INFO)
    try:
        with _models_may_run_code() if trusted else nullcontext():
            run_command(words[0], words[1:])
    except (SaelabError, KeyboardInterrupt) as error:
        if debug:
            raise
        return _report(error)
    except Exception as error:
        problem = resource_problem(error) or (error if isinstance(error, OSError) else None)
        if debug or problem is None:
            raise
        return _report(problem)
    return 0


@contextmanager
def _models_may_run_code() -> Iterator[None]:
    """Give the permission for the time of one command, to the processes that it starts too."""
    from .model.identity import CODE_ALLOWED

    before = os.environ.get(CODE_ALLOWED)
    os.environ[CODE_ALLOWED] = "1"
    try:
        yield
    finally:
        os.environ.pop(CODE_ALLOWED)
        os.environ.update({} if before is None else {CODE_ALLOWED: before})


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Run one sub-command in this process.

    Raises:
        SaelabError: the command is unknown or failed in words.
    """
    if name not in COMMANDS:
        raise SaelabError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}")
    importlib.import_module(COMMANDS[name].module).main(list(arguments))


def usage() -> str:
    """What `saelab --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: saelab COMMAND [OPTIONS]\n",
            "Train sparse autoencoders on language-model activations and judge them.\n",
            *lines,
            "\n`saelab COMMAND --help` explains a command; `--debug` anywhere shows tracebacks,",
            "`--trust-remote-code` lets a model run Python code of its own.",
        ]
    )


def _report(error: BaseException) -> int:
    if isinstance(error, BrokenPipeError):
        # The reader of our output has gone; silence Python's own complaint at exit too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, KeyboardInterrupt):
        print("saelab: interrupted", file=sys.stderr)
        return EXIT_STOPPED["SIGINT"]
    message = _file_problem(error) if isinstance(error, OSError) else str(error)
    print(f"saelab: {' '.join(message.split())}", file=sys.stderr)
    if isinstance(error, Stopped):
        return EXIT_STOPPED[error.signal_name]
    return EXIT_ERROR


def _file_problem(error: OSError) -> str:
    """What the system says of a file, such as a file where a folder is needed, or a full disk."""
    if error.strerror is None:
        return str(error)
    file = "a file" if error.filename is None else error.filename
    return f"cannot use {file}: {error.strerror} (`--debug` shows where it happened)"


if __name__ == "__main__":
    sys.exit(main())
