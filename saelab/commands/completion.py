"""`saelab completion SHELL`: a completion script, static, so that pressing Tab starts no Python."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import tyro

from saelab.cli import COMMANDS
from saelab.config import option_strings, parse_arguments


@dataclass(frozen=True, kw_only=True)
class CompletionCommand:
    """Print a completion script; `eval "$(saelab completion bash)"` switches it on."""

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """Shell to complete in."""


CONFIG = CompletionCommand

BASH = """_saelab() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" options=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word")); return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [[ "$word" == -* ]]; then
    COMPREPLY=($(compgen -W "$options --help --debug --trust-remote-code" -- "$word"))
  else
    COMPREPLY=($(compgen -W "$values" -- "$word") $(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _saelab saelab
"""


def options_of(module: ModuleType) -> list[str]:
    """The options a command's module offers: its list, or those of its CONFIG."""
    if hasattr(module, "completion_options"):
        return module.completion_options()
    return option_strings(module.CONFIG)


def main(arguments: Sequence[str]) -> None:
    """Print the script."""
    command = parse_arguments(CompletionCommand, arguments, program="saelab completion")
    cases = []
    for name, entry in COMMANDS.items():
        module = importlib.import_module(entry.module)
        options = " ".join(options_of(module))
        values = " ".join(getattr(module, "completion_values", list)())
        cases.append(f'    {name}) options="{options}"; values="{values}" ;;')
    script = BASH.format(commands=" ".join(COMMANDS), cases="\n".join(cases))
    if command.shell == "zsh":
        script = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n" + script
    print(script, end="")
