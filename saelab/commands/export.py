"""`saelab export DICTIONARY --to FORMAT`: a dictionary, or a vector of it, for other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError
from saelab.formats.files import whole_folder
from saelab.formats.lock import writer_lock
from saelab.formats.run import dictionary_folders

PROGRAM = "saelab export"
Target = Literal[
    "saelens",
    "sparsify",
    "dictionary_learning",
    "circuit-tracer",
    "neuronpedia",
    "vectors",
    "gguf",
]


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write a dictionary in another library's format.

    `neuronpedia` writes the pages of its features, from its feature store and its labels. `vectors`
    (lm-evaluation-harness) and `gguf` (llama.cpp) write one steering vector, the sum of the
    features given with --latents. `circuit-tracer` writes a cross-layer transcoder, or a set of
    transcoders, of which one is given for every layer.
    """

    dictionaries: tyro.conf.Positional[tuple[Path, ...]]
    """Dictionary folder; those of every layer, or their run, for a set of `circuit-tracer`'s."""
    to: Target
    """Format."""
    out: Path
    """Folder to write to."""
    latents: tuple[str, ...] = ()
    """Features of a steering vector, as LATENT=STRENGTH, such as 12=8.0."""
    name: str | None = None
    """Name of a steering vector's file (None: steering), or of the set of features on Neuronpedia
    (None: the dictionary's)."""
    overwrite: bool = False
    """Replace what is there."""


CONFIG = ExportCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab export`.

    Raises:
        SaelabError: whatever the user can put right.
    """
    command = parse_arguments(ExportCommand, arguments, program=PROGRAM)
    from saelab.dictionary import load_dictionary
    from saelab.dictionary.exporters import DICTIONARY_EXPORTS, VECTOR_EXPORTS, SteeredLatents

    wants_vector = command.to in VECTOR_EXPORTS
    if bool(command.latents) != wants_vector:
        raise ConfigError(
            f"latents: needed for {' and '.join(VECTOR_EXPORTS)}, and for nothing else; "
            f"{len(command.latents)} were given with --to {command.to}"
        )
    with writer_lock(command.out):
        # Under the lock, which has removed what a killed export left.
        if command.out.exists() and any(command.out.iterdir()) and not command.overwrite:
            raise ConfigError(f"{command.out} is not empty: add --overwrite, or give another --out")
        folders = command.dictionaries
        if command.to == "circuit-tracer":
            folders = dictionary_folders(folders)
        elif len(folders) != 1:
            raise ConfigError(f"{len(folders)} dictionaries are given: --to {command.to} takes one")
        of_set = [load_dictionary(folder) for folder in folders]
        saved = of_set[0]
        with whole_folder(command.out) as out:
            if wants_vector:
                steering = SteeredLatents(
                    dict(_strength(given) for given in command.latents), command.name or "steering"
                )
                files = VECTOR_EXPORTS[command.to](saved, out, steering)
            elif command.to == "neuronpedia":
                from saelab.features.neuronpedia import export_neuronpedia

                files = [export_neuronpedia(saved, out, command.name)]
            elif command.to == "circuit-tracer":
                from saelab.dictionary.circuit_tracer_files import to_circuit_tracer

                files = to_circuit_tracer(of_set, out)
            else:
                files = DICTIONARY_EXPORTS[command.to](saved, out)
    for file in files:
        print(f"exported: {command.out / file.relative_to(out)}")


def _strength(given: str) -> tuple[int, float]:
    latent, _, strength = given.partition("=")
    try:
        return int(latent), float(strength)
    except ValueError:
        raise ConfigError(
            f"latents: {given!r} is no feature with a strength: give LATENT=STRENGTH, such as "
            "12=8.0"
        ) from None
