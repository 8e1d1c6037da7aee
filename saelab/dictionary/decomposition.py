"""An activation taken apart: reconstruction + linearly predictable error + the rest of the error.

The probe is the least-squares map from activations to a dictionary's error (Engels, Smith and
Tegmark, "Decomposing the dark matter of sparse autoencoders", arXiv 2410.14670, E5 to E7); the
suite `saelab eval dark-matter` fits and saves one beside each dictionary it judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ActivationError, ArtifactError
from saelab.formats.files import read_tensors, write_tensors
from saelab.sparse import SparseCodes

from .architectures import Dictionary, error_of


@dataclass(frozen=True, eq=False)
class ErrorProbe:
    """An affine map from activations to the linearly predictable part of a dictionary's error."""

    weight: Float[Tensor, "d_in d_in"]
    """Coefficients, input dimension by error dimension."""
    bias: Float[Tensor, " d_in"]
    """Constant, in activation units."""

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
        codes: of these rows by another encoder, such as `pursue`. None: the dictionary's own.

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
    tensors = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    width = shapes.get("bias", (0,))[0]
    if shapes != {"weight": (width, width), "bias": (width,)}:
        raise ArtifactError(
            f"{path} is no error probe: it holds {shapes}, expected a square 'weight' and a 'bias' "
            "of its width; make it with `saelab eval dark-matter`"
        )
    return ErrorProbe(tensors["weight"], tensors["bias"])
