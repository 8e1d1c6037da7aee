"""An activation taken apart: reconstruction + linearly predictable error + the rest of the error.

The probe is the least-squares map from activations to a dictionary's error (Engels, Smith and
Tegmark, "Decomposing the dark matter of sparse autoencoders", arXiv 2410.14670, E5 to E7); the
suite `saelab eval dark-matter` fits and saves one beside each dictionary it judges. `ErrorRows`
turns activations into the error, or a part of it: what a dictionary trained on such rows was made
from is kept under `ORIGIN_KEY`, so that nobody takes it for one of the model's activations.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ActivationError, ArtifactError, ConfigError
from saelab.formats.files import read_tensors, write_tensors
from saelab.sparse import SparseCodes

from .architectures import Dictionary, error_of
from .storage import SavedDictionary, load_dictionary

ErrorComponent = Literal["error", "linear", "nonlinear"]
ERROR_COMPONENTS: tuple[ErrorComponent, ...] = get_args(ErrorComponent)
ORIGIN_KEY = "error_component"
"""Where `made_from` keeps whose error, and which part of it, a dictionary was trained on."""
PROBE_FILE = Path("evals") / "dark_matter_probe.safetensors"
"""Where `saelab eval dark-matter` leaves a dictionary's probe, in the dictionary's folder."""


@dataclass(frozen=True, eq=False)
class ErrorProbe:
    """An affine map from activations to the linearly predictable part of a dictionary's error."""

    weight: Float[Tensor, "d_in d_in"]
    """Coefficients, input dimension by error dimension."""
    bias: Float[Tensor, " d_in"]
    """Constant, in activation units."""
    dictionary_hash: str | None = None
    """Content hash of that dictionary; None where not recorded."""

    def linear_error(self, activations: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """The predicted error x B + b, in the dtype and on the device of the probe."""
        return activations.to(self.weight) @ self.weight + self.bias


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Three parts whose sum is the activation, by construction."""

    reconstruction: Float[Tensor, "rows d_in"]
    """What the dictionary explains."""
    linear_error: Float[Tensor, "rows d_in"]
    """What a linear map of the activation predicts of the error."""
    nonlinear_error: Float[Tensor, "rows d_in"]
    """The remainder: activation - reconstruction - linear error."""

    @property
    def error(self) -> Float[Tensor, "rows d_in"]:
        """The dictionary's error: activation - reconstruction."""
        return self.linear_error + self.nonlinear_error


@torch.no_grad()
def decompose(
    dictionary: Dictionary,
    probe: ErrorProbe,
    activations: Float[Tensor, "rows d_in"],
    codes: SparseCodes | None = None,
) -> Decomposition:
    """Take activations apart.

    Args:
        dictionary: what explains them.
        probe: fitted to this dictionary's errors, of another encoder's if `codes` are.
        activations: rows to take apart.
        codes: of these rows by `PursuitEncoder` or the like. None: the dictionary's own.

    Raises:
        ActivationError: activations of another width than the probe or the dictionary.
    """
    width = activations.shape[1]
    if width != dictionary.d_in or width != len(probe.bias):
        raise ActivationError(
            f"activations of width {width} cannot be taken apart by a dictionary of width "
            f"{dictionary.d_in} and a probe of width {len(probe.bias)}: use the hook point that "
            "both were made for"
        )
    codes = dictionary.encode(activations) if codes is None else codes
    reconstruction = dictionary.decode(codes).to(activations)
    linear = probe.linear_error(activations).to(activations)
    nonlinear = error_of(activations, reconstruction) - linear
    return Decomposition(reconstruction, linear, nonlinear)


def save_probe(path: Path, probe: ErrorProbe, metadata: dict[str, str]) -> None:
    """Write a probe as safetensors (float32), with words on what it was fitted to."""
    tensors = {"weight": probe.weight.float(), "bias": probe.bias.float()}
    write_tensors(path, tensors, metadata, sealed=True)


def load_probe(path: Path) -> ErrorProbe:
    """Read a probe that `save_probe` wrote.

    Raises:
        ArtifactError: missing, damaged, or no probe.
    """
    from safetensors import safe_open

    tensors = read_tensors(path)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    width = shapes.get("bias", (0,))[0]
    if shapes != {"weight": (width, width), "bias": (width,)}:
        raise ArtifactError(
            f"{path} is no error probe: it holds {shapes}, expected a square 'weight' and a 'bias' "
            "of its width; make it with `saelab eval dark-matter`"
        )
    return ErrorProbe(tensors["weight"], tensors["bias"], metadata.get("dictionary_hash"))


class ErrorRows:
    """Turns rows of activations into a component of a dictionary's error.

    Args:
        saved: the dictionary whose error is meant.
        probe: fitted to its errors; None for the component "error", which needs none.
        component: "error": x − reconstruction; "linear": what the probe predicts of it;
            "nonlinear": the rest.

    Raises:
        ArtifactError: the probe is of another width, or was fitted to another dictionary.
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
        elif probe.dictionary_hash not in (None, saved.content_hash):
            raise ArtifactError(
                f"the probe was fitted to another dictionary than {saved.folder} (content hash "
                f"{probe.dictionary_hash}, not {saved.content_hash}): make the dictionary's own "
                f"with `saelab eval dark-matter {saved.folder} --overwrite`"
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
        path = folder / PROBE_FILE if probe is None else probe
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
