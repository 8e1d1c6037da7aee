"""overcomplete (Fel): a state_dict whose dictionary is fused to a plain decoder on import.

The dictionary is a table of rows normalised by training, or (RA-SAE) row-stochastic(W) C + Relax,
with the rows of Relax no longer than delta; either times exp(multiplier). There is no bias.
Encoders of one linear layer are read, with a batch norm folded in; others are not linear. Which
class it is, and k, are in no state_dict: `<file's stem>.json` beside it says them, as in
{"class": "RATopKSAE", "top_k": 20, "delta": 1.0}.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.errors import ArtifactError

from .files import load_weights, peek_config, peek_shapes, single_file, take
from .foreign import Foreign, Format, Source, build

SUFFIXES = (".pt", ".pth", ".safetensors")
ROWS, RELAXED = "dictionary._weights", ("dictionary.W", "dictionary.C", "dictionary.Relax")
MULTIPLIER = "dictionary.multiplier"
LAYER, NORM = "encoder.final_block.0", "encoder.final_block.1"
BATCH_NORM_EPSILON = 1e-5
CLASSES = {"SAE": "relu", "TopKSAE": "topk", "RATopKSAE": "topk", "JumpSAE": "jumprelu"}
CLASSES |= {"RAJumpSAE": "jumprelu"}


def matches(path: Path) -> bool:
    """Whether a file holds one of their dictionaries."""
    held = peek_shapes(single_file(path, *SUFFIXES)).keys()
    return ROWS in held or {*RELAXED} <= held


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a file."""
    path = single_file(source.path, *SUFFIXES) or source.path
    settings_path = path.with_suffix(".json")
    weights, settings = load_weights(path), peek_config(settings_path)
    name = settings.get("class", "JumpSAE" if "thresholds" in weights else None)
    if name not in CLASSES:
        raise ArtifactError(
            f"{path} does not say how it selects: write its class, of {', '.join(CLASSES)}, and "
            f'for TopK its k to {settings_path.name} beside it: {{"class": "TopKSAE", "top_k": 20}}'
            + (f" (it says {name!r}, which cannot be expressed)" if name else "")
        )
    decoder, notes = _decoder(path, weights, settings)
    encoder, b_enc = _encoder(path, weights, decoder)
    architecture, extra = CLASSES[name], {}
    if architecture == "topk":
        if not isinstance(settings.get("top_k"), int):
            raise ArtifactError(f"{settings_path} lacks top_k, which no state_dict holds: add it")
        extra = {"k": settings["top_k"]}
    elif architecture == "jumprelu":
        extra = {"threshold": take(weights, path, "thresholds")["thresholds"].exp()}
    yield Foreign(
        dictionary=build(
            path,
            architecture,
            W_enc=encoder.T,
            b_enc=b_enc,
            W_dec=decoder,
            b_dec=torch.zeros(decoder.shape[1]),
            **extra,
        ),
        conventions={
            "orientation": "encoder transposed; dictionary fused to one matrix",
            "selection": f"{name}, after ReLU",
            "threshold": "exp, at least: read as greater" if "thresholds" in weights else "none",
            "hook point": "given by the user",
        },
        notes=notes,
        files=(path, settings_path),
    )


def _decoder(
    path: Path, weights: dict[str, Any], settings: dict[str, Any]
) -> tuple[Tensor, tuple[str, ...]]:
    """The fused dictionary [d_sae d], and what had to be assumed."""
    factor = take({MULTIPLIER: torch.zeros(()), **weights}, path, MULTIPLIER)[MULTIPLIER].exp()
    if ROWS not in weights:
        mixture, points, relaxation = take(weights, path, *RELAXED).values()
        mixture = mixture.relu()
        mixture = mixture / (mixture.sum(dim=1, keepdim=True) + 1e-8)
        delta = float(settings.get("delta", 1.0))
        length = relaxation.norm(dim=1, keepdim=True)
        return (mixture @ points + relaxation * (delta / length).clamp(max=1)) * factor, ()
    rows = take(weights, path, ROWS)[ROWS]
    normalisation = settings.get("normalization", "l2")
    if normalisation == "identity":
        return rows * factor, ()
    order = {"l2": 2, "l1": 1, "max_l2": 2, "max_l1": 1}.get(normalisation)
    if order is None:
        raise ArtifactError(f"{path}: its dictionary's normalization {normalisation!r} is unknown")
    norms = rows.norm(p=order, dim=1, keepdim=True)
    notes = ()
    if normalisation == "l2" and float((norms - 1).abs().max()) > 0.01:
        notes = (
            f"rows of its dictionary have norms of {norms.min():.3g} to {norms.max():.3g}, brought "
            "to one as overcomplete does by default; was it trained with another normalization, "
            f"say so in {path.stem}.json",
        )
    divisor = norms.max() if normalisation.startswith("max") else norms + 1e-8
    return rows / divisor * factor, notes


def _encoder(path: Path, weights: dict[str, Any], decoder: Tensor) -> tuple[Tensor, Tensor]:
    """W [d_sae d] and b [d_sae] of the encoder's one linear layer."""
    held = {name for name in weights if name.startswith("encoder.")}
    zeros = torch.zeros(len(decoder))
    if held <= {"encoder.weight", "encoder.bias"} or any("tied_to" in name for name in held):
        taken = take(weights, path, optional=("encoder.weight", "encoder.bias"))
        return taken.get("encoder.weight", decoder), taken.get("encoder.bias", zeros)
    normed = {f"{NORM}.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    linear = {f"{LAYER}.weight", f"{LAYER}.bias"}
    extra = held - linear - normed - {f"{NORM}.num_batches_tracked"}
    if extra or not linear <= held or not (normed <= held or not normed & held):
        raise ArtifactError(
            f"{path} has an encoder with {min(extra or held or {'nothing'})}, which is not one "
            "linear layer (others have hidden layers, attention, convolutions or a layer norm): no "
            "architecture of saelab has such an encoder"
        )
    weight, bias = take(weights, path, *sorted(linear, reverse=True)).values()
    if not normed <= held:
        return weight, bias
    gain, shift, mean, variance = (
        take(weights, path, f"{NORM}.{name}")[f"{NORM}.{name}"]
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    gain = gain / (variance + BATCH_NORM_EPSILON).sqrt()
    return weight * gain[:, None], (bias - mean) * gain + shift


FORMAT = Format("overcomplete (Fel)", matches, read)
