"""What an importer gives, and what importers share: assembling dictionaries, folding scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.site import Site
from saelab.errors import ArtifactError, ConfigError

SCALE = "norm_scaling_factor"
"""What SAELens' registry calls a factor for activations; the proof tries it too."""


@dataclass(frozen=True)
class Source:
    """A dictionary from elsewhere, on this machine."""

    path: Path
    """A file or a folder."""
    name: str
    """As it was asked for, such as `hf:google/gemma-scope-2b-pt-res/layer_12/…`: where a format
    records no model or layer, its repository's and folders' names say it."""
    hints: Mapping[str, Any] = field(default_factory=dict)
    """What a registry knows of it: model, hook_name, reported_l0, norm_scaling_factor, …"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Foreign:
    """A dictionary that an importer read, and all that its files say of it."""

    dictionary: Dictionary
    """With its authors' function, in float32."""
    name: str = ""
    """Which of several in one source; empty where there is one."""
    site: Site | None = None
    """What it reads and writes, in TransformerLens' names; None where nothing says it."""
    model: str | None = None
    """The language model; None where nothing says it."""
    conventions: Mapping[str, str] = field(default_factory=dict)
    """What reading did: orientation, input bias, scale, threshold, selection, hook point; where the
    first three are not said, matrices are as they are and nothing is subtracted or scaled."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What else its files record, by the names of a manifest's `made_from` where it has one:
    context_length, prepend_bos; reported_l0, reported_fvu, reported_dead_fraction. What is None is
    left out."""
    notes: Sequence[str] = ()
    """What a user must know, such as where codes can differ from its authors'."""
    files: Sequence[Path] = ()
    """The files it was read from, as far as there are any, whose hashes are kept."""
    in_place: bool = False
    """Whether the source is a SAELens folder that holds this very dictionary."""


@dataclass(frozen=True)
class Format:
    """A way in which others save dictionaries."""

    title: str
    """Whose it is, for tables."""
    matches: Callable[[Path], bool]
    """Whether a file or folder looks like it, from names and small files alone."""
    read: Callable[[Source], Iterator[Foreign]]
    """The dictionaries in a source, one after the other."""
    reference: Callable[[Source, Tensor], tuple[Tensor, Tensor]] | None = None
    """Dense codes and reconstruction of rows by the library that wrote it; None: there is none."""


def names_of(source: Source) -> str:
    """The name a source was asked for by and its whole path, which some formats' meaning is in."""
    return f"{source.name} {source.path.absolute().as_posix()}"


def batch_top_k(
    k: int, threshold: float | None, d_sae: int
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """What a dictionary becomes that kept k latents per row on average over a whole batch.

    Args:
        threshold: what its training estimated for use on single rows; None or negative: nothing.

    Returns:
        Architecture, its k or threshold, and notes.
    """
    if threshold is not None and threshold >= 0:
        return "jumprelu", {"threshold": full_threshold(threshold, d_sae)}, ()
    note = (
        f"its training kept the largest {k} codes per row of a whole batch, and its file holds no "
        f"threshold that was estimated: each row keeps its own {k} largest here, so codes differ "
        "from its authors', which depend on the batch"
    )
    return "topk", {"k": int(k)}, (note,)


def build_unshifted(path: Path, architecture: str, **tensors: Any) -> Dictionary:
    """As `build`, of a dictionary that subtracts nothing from its input."""
    return build(path, architecture, b_in=torch.zeros(len(tensors["W_enc"])), **tensors)


def build(path: Path, architecture: str, **tensors: Any) -> Dictionary:
    """The dictionary of some tensors, in whose error its file is named.

    Raises:
        ArtifactError: the tensors do not fit one another.
    """
    for name in ("W_enc", "W_dec"):
        if tensors[name].ndim != 2:
            raise ArtifactError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}; it must be a matrix"
            )
    d_in, d_sae = tensors["W_enc"].shape
    d_out = tensors["W_dec"].shape[1]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    shapes |= {"b_in": (d_in,), "W_skip": (d_out, d_in)}
    for name, tensor in tensors.items():
        expected = shapes.get(name, (d_sae,))
        if isinstance(tensor, Tensor) and tuple(tensor.shape) != expected:
            raise ArtifactError(
                f"{path}: {name} has shape {tuple(tensor.shape)}; with an encoder of "
                f"{d_in} x {d_sae} it must be {expected}"
            )
    try:
        return Dictionary(architecture, **tensors)
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from None


def in_raw_units(
    tensors: Mapping[str, Tensor],
    scale_in: float | Float[Tensor, " d_in"],
    scale_out: float | Float[Tensor, " d_out"] | None = None,
) -> dict[str, Tensor]:
    """A dictionary of scaled activations as one of raw ones, with the same codes.

    Its input was multiplied by `scale_in`, and its output is to be divided by `scale_out`. The
    pre-activations, and with them thresholds and codes, stay as they were.

    Args:
        tensors: W_enc, W_dec, b_dec, and b_in or W_skip where there are any.
        scale_in: one for all, or one for each dimension.
        scale_out: None: `scale_in`.
    """
    scale_out = scale_in if scale_out is None else scale_out
    inward = torch.as_tensor(scale_in, dtype=torch.float32)
    outward = torch.as_tensor(scale_out, dtype=torch.float32)
    raw = dict(tensors)
    raw["W_enc"] = tensors["W_enc"] * (inward[:, None] if inward.ndim else inward)
    raw["W_dec"] = tensors["W_dec"] / outward
    raw["b_dec"] = tensors["b_dec"] / outward
    if "b_in" in tensors:
        raw["b_in"] = tensors["b_in"] / inward
    if "W_skip" in tensors:
        raw["W_skip"] = tensors["W_skip"] * inward / (outward[:, None] if outward.ndim else outward)
    return raw


def full_threshold(value: float, d_sae: int) -> Float[Tensor, " d_sae"]:
    """One threshold for every latent."""
    return torch.full((d_sae,), float(value))
