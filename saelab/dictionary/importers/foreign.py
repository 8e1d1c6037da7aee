"""What an importer gives, and what importers share: loading weights, folding scales and norms."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.site import Site
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import read_tensors

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
    """What reading did: orientation, input bias, scale, threshold, selection, hook point."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What else its files record, by the names of a manifest's `made_from` where it has one:
    context_length, prepend_bos; reported_l0, reported_fvu, reported_dead_fraction."""
    notes: Sequence[str] = ()
    """What a user must know, such as where codes can differ from its authors'."""
    files: Sequence[Path] = ()
    """The files it was read from, whose hashes are kept."""
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


def load_weights(path: Path) -> dict[str, Any]:
    """The content of a weights file: safetensors, npz, or a pickle of tensors alone.

    Nothing in a file is run: a pickle that holds more than tensors, numbers and containers is
    refused.

    Raises:
        ArtifactError: the file is missing, damaged, of another kind, or would have to be run.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: get the whole dictionary again")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        if path.suffix == ".npz":
            # The handle is ours, since numpy leaves a damaged file open.
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ArtifactError(
            f"{path} holds Python objects that would have to be run to be read, which saelab never "
            "does: ask its authors for the weights alone (a state_dict or safetensors)"
        ) from None
    except Exception as error:
        raise ArtifactError(
            f"{path} cannot be read ({str(error).splitlines()[0][:120]}): it is damaged, cut short "
            "or no weights file; get it again"
        ) from None
    if not isinstance(content, dict):
        raise ArtifactError(
            f"{path} holds a {type(content).__name__}, not a table of tensors: this is no "
            "dictionary that saelab knows"
        )
    return content


def load_config(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a table.

    Raises:
        ArtifactError: it is missing, damaged or holds something else.
    """
    from saelab.config import read_yaml
    from saelab.formats.files import read_json

    try:
        is_yaml = path.suffix in (".yaml", ".yml") and path.is_file()
        content = read_yaml(path) if is_yaml else read_json(path)
    except ConfigError as error:
        raise ArtifactError(str(error)) from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds no table of settings: get it again")
    return content


def peek_config(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a table, for recognising a format; else empty."""
    try:
        return load_config(path)
    except (ArtifactError, OSError):
        return {}


def single_file(path: Path, *suffixes: str) -> Path | None:
    """A file with one of some suffixes: the path itself, or the only one in a folder."""
    if path.is_file():
        return path if path.suffix in suffixes else None
    files = [each for each in path.glob("*") if each.suffix in suffixes and each.is_file()]
    return files[0] if len(files) == 1 else None


def peek_shapes(path: Path | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a weights file, for recognising a format; its tensors are not read.

    What is no tensor has the shape (). A file that cannot be read without running it has none.
    """
    from safetensors import safe_open

    if path is None or not path.is_file():
        return {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                names = list(file.keys())
                return {name: tuple(file.get_slice(name).get_shape()) for name in names}
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return {}
    table = content if isinstance(content, dict) else {}
    return {str(name): tuple(getattr(value, "shape", ())) for name, value in table.items()}


def take(
    weights: Mapping[str, Any], path: Path, *names: str, optional: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Tensors by name, in float32.

    Args:
        weights: as `load_weights` gives them.
        path: where they are from, for messages.
        names: which there must be.
        optional: which there may be.

    Raises:
        ArtifactError: one is missing or no tensor of numbers.
    """
    missing = [name for name in names if name not in weights]
    if missing:
        raise ArtifactError(
            f"{path} lacks the tensors {', '.join(missing)} (it holds {', '.join(weights)[:200]}): "
            "it is of another format or incomplete"
        )
    taken = {}
    for name in (*names, *(name for name in optional if name in weights)):
        tensor = weights[name]
        if not isinstance(tensor, Tensor):
            raise ArtifactError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor")
        taken[name] = tensor.detach().float()
        if not bool(taken[name].isfinite().all()):
            raise ArtifactError(f"{path}: {name} holds a NaN or an infinity: get it again")
    return taken


def require_shapes(
    tensors: Mapping[str, Tensor], path: Path, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuse tensors of other shapes than a file's settings promise.

    Raises:
        ArtifactError: one has another shape; the message names the first.
    """
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != tuple(shape):
            raise ArtifactError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, its settings promise "
                f"{tuple(shape)}: it is damaged, or the two are of different dictionaries"
            )


def names_of(source: Source) -> str:
    """The name a source was asked for by and its whole path, which some formats' meaning is in."""
    return f"{source.name} {source.path.absolute().as_posix()}"


def renamed(weights: Mapping[str, Any], path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by saelab's names; weights of linear layers (`encoder.weight`) are transposed.

    Args:
        weights: as `load_weights` gives them.
        path: where they are from, for messages.
        names: saelab's name -> the file's.

    Raises:
        ArtifactError: one is missing or no tensor of numbers.
    """
    taken = take(weights, path, *names.values())
    return {
        ours: taken[theirs].T if theirs.endswith(".weight") else taken[theirs]
        for ours, theirs in names.items()
    }


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
