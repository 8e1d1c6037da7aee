"""Activations turned into a dictionary's error, or a part of it, row by row.

What a dictionary trained on such rows was made from is kept under `ORIGIN_KEY`, so that nobody
takes it for a dictionary of the model's activations.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError, ConfigError

from .decomposition import ErrorProbe, decompose, load_probe
from .storage import SavedDictionary, load_dictionary

ErrorComponent = Literal["error", "linear", "nonlinear"]
ERROR_COMPONENTS: tuple[ErrorComponent, ...] = get_args(ErrorComponent)
ORIGIN_KEY = "error_component"
"""Where `made_from` keeps whose error, and which part of it, a dictionary was trained on."""
PROBE_PLACE = Path("evals") / "dark_matter_probe.safetensors"
"""Where `saelab eval dark-matter` leaves a dictionary's probe, in the dictionary's folder."""


class ErrorRows:
    """Turns rows of activations into a component of a dictionary's error.

    Args:
        saved: the dictionary whose error is meant.
        probe: fitted to its errors; None for the component "error", which needs none.
        component: "error": x − reconstruction; "linear": what the probe predicts of it;
            "nonlinear": the rest.

    Raises:
        ArtifactError: the probe is of another width than the dictionary.
        ConfigError: there is no probe, and the component needs one.
    """

    def __init__(self, saved: SavedDictionary, probe: ErrorProbe | None, component: ErrorComponent):
        if component == "error":
            probe = None
        elif probe is None:
            raise ConfigError(
                f"the {component} component of {saved.folder}'s error was asked for without the "
                "probe that tells it apart: give one"
            )
        elif len(probe.bias) != saved.dictionary.d_in:
            raise ArtifactError(
                f"the probe has width {len(probe.bias)} and {saved.folder} has width "
                f"{saved.dictionary.d_in}: give the probe that was fitted to this dictionary"
            )
        self.saved, self.probe, self.component = saved, probe, component

    @staticmethod
    def load(folder: Path, probe: Path | None, component: ErrorComponent) -> ErrorRows:
        """Read dictionary and probe.

        Args:
            folder: of the dictionary.
            probe: file of the probe; None: where `saelab eval dark-matter` leaves it.
            component: which part of the error.

        Raises:
            ArtifactError: one of them is damaged, or they do not fit.
            ConfigError: there is no probe, and the component needs one.
        """
        # First, so that a dictionary that is not there is not asked for its probe.
        saved = load_dictionary(folder)
        if component == "error":
            return ErrorRows(saved, None, component)
        path = folder / PROBE_PLACE if probe is None else probe
        if not path.is_file():
            raise ConfigError(
                f"{path}, the probe that tells the parts of the error apart, does not exist: make "
                f"it with `saelab eval dark-matter {folder}`, or name another with --error-probe"
            )
        return ErrorRows(saved, load_probe(path), component)

    @torch.no_grad()
    def __call__(self, activations: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """The component of each row, in the dtype of the rows."""
        if self.probe is None:
            return self.saved.dictionary.error(activations).to(activations)
        parts = decompose(self.saved.dictionary, self.probe, activations)
        return parts.linear_error if self.component == "linear" else parts.nonlinear_error

    def provenance(self) -> dict[str, Any]:
        """What tells these rows from the activations they were made from."""
        return {
            "component": self.component,
            "dictionary": self.saved.name,
            "dictionary_hash": self.saved.content_hash,
            "probe_hash": None if self.probe is None else hash_of_probe(self.probe),
        }


def hash_of_probe(probe: ErrorProbe) -> str:
    """SHA-256 of a probe's numbers in float32."""
    digest = hashlib.sha256()
    for tensor in (probe.weight, probe.bias):
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
