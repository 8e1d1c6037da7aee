"""Dictionaries from elsewhere: one file per format, and the question which format a source has."""

from __future__ import annotations

from collections.abc import Iterator

from saelab.errors import ArtifactError, ConfigError, did_you_mean

from . import (
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    llamascopium,
    qwen_scope,
    saelens,
    sparsify,
)
from .foreign import Foreign, Format, Source
from .sources import resolve

__all__ = ["FORMATS", "Foreign", "Format", "Source", "read_foreign", "recognise", "resolve"]

FORMATS: dict[str, Format] = {
    "saelens": saelens.FORMAT,
    "sparsify": sparsify.FORMAT,
    "gemma-scope": gemma_scope.FORMAT,
    "gemma-scope-2": gemma_scope_2.FORMAT,
    "llama-scope": llama_scope.FORMAT,
    "llamascopium": llamascopium.FORMAT,
    "qwen-scope": qwen_scope.FORMAT,
}
"""Every format that opens, by the name that `--format` takes."""


def recognise(source: Source) -> str:
    """The format of a source, from its files.

    Raises:
        ArtifactError: no format, or several, with the question to answer.
    """
    names = [name for name, one in FORMATS.items() if one.matches(source.path)]
    if not names:
        raise ArtifactError(
            f"{source.name} is of no format that saelab knows: say which with --format "
            f"({', '.join(FORMATS)})"
        )
    if len(names) > 1:
        raise ArtifactError(
            f"{source.name} can be read as {' or '.join(names)}: say which with --format"
        )
    return names[0]


def read_foreign(source: Source, format_name: str | None = None) -> Iterator[Foreign]:
    """The dictionaries of a source, one after the other.

    Raises:
        ConfigError: an unknown format.
        ArtifactError: an unknown, ambiguous, damaged or incomplete source, or one that holds what
            saelab cannot express; the message says which.
    """
    if format_name is not None and format_name not in FORMATS:
        raise ConfigError(
            f"format: {format_name!r} is unknown; {did_you_mean(format_name, FORMATS)}"
        )
    return FORMATS[format_name or recognise(source)].read(source)
