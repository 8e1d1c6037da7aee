"""`saelab models`: the language models that load without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saelab.config import parse_arguments


@dataclass(frozen=True, kw_only=True)
class ModelsCommand:
    """List the language models at hand; any Hugging Face name, folder or GGUF file works too."""


CONFIG = ModelsCommand


def main(arguments: Sequence[str]) -> None:
    """Print a table of the models."""
    parse_arguments(ModelsCommand, arguments, program="saelab models")
    from rich.console import Console
    from rich.table import Table

    from saelab.model.language_model import list_models

    models = list_models()
    table = Table(*(list(models[0]) if models else ["name"]))
    for model in models:
        table.add_row(*(str(value) for value in model.values()))
    Console().print(table)
    print(
        "Also: any Hugging Face causal LM or encoder that TransformerLens 4 knows (owner/model, "
        "owner/model@revision), a folder, a .gguf file."
    )
