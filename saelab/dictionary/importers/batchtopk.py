"""The BatchTopK repository (Bussmann): `sae.pt` and `config.json`, whose settings say what counts.

b_dec is subtracted and added. Of a TopK dictionary `b_enc` counts only with `use_encoder_bias`.
With `input_unit_norm` each row is brought to mean 0 and standard deviation 1, and back: its newest
version adds the normalised row instead of the mean, which no training ever used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .files import load_config, load_weights, peek_config, take
from .foreign import Foreign, Format, Source, batch_top_k, build

CONFIG, WEIGHTS = "config.json", "sae.pt"
LOG_THRESHOLD = "jumprelu.log_threshold"


def matches(path: Path) -> bool:
    """Whether a folder's config has their settings."""
    return {"sae_type", "top_k", "act_size"} <= peek_config(path / CONFIG).keys()


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a folder."""
    folder = source.path
    config, path = load_config(folder / CONFIG), folder / WEIGHTS
    kind = str(config["sae_type"])
    weights = load_weights(path)
    tensors = take(weights, path, "W_enc", "W_dec", "b_dec", "b_enc")
    _refuse(folder, config, kind)
    if config.get("tied_weights") and kind != "vanilla":
        tensors["W_dec"] = tensors["W_enc"].T
    if kind in ("topk", "batchtopk") and not config.get("use_encoder_bias"):
        tensors["b_enc"] = torch.zeros_like(tensors["b_enc"])
    architecture, extra, notes = _selection(config, kind, weights, path)
    if config.get("input_unit_norm"):
        extra["input_normalisation"] = "layer_norm"
    hook_point = config.get("hook_point")
    yield Foreign(
        dictionary=build(path, architecture, **tensors, **extra),
        site=None if hook_point is None else Site.of(hook_point),
        model=config.get("model_name"),
        conventions={
            "orientation": "tied: W_enc transposed" if config.get("tied_weights") else "as it is",
            "input bias": "none" if kind == "jumprelu" else "b_dec is subtracted, after the norm",
            "encoder bias": "b_enc" if tensors["b_enc"].any() else "none",
            "scale": "layer norm of each row, undone after"
            if config.get("input_unit_norm")
            else "none",
            "selection": f"{kind}, after ReLU",
            "hook point": "as recorded",
        },
        origin={"context_length": config.get("seq_len")},
        notes=notes,
        files=(folder / CONFIG, path),
    )


def _refuse(folder: Path, config: dict[str, Any], kind: str) -> None:
    reasons = {
        "quantile": "whose threshold is not in the file",
        "maxpool": "which pools neighbouring latents",
    }
    if kind not in ("vanilla", "topk", "batchtopk", "jumprelu"):
        raise ArtifactError(
            f"{folder} is of the type {kind!r}, {reasons.get(kind, 'which is unknown')}: it cannot "
            "be imported"
        )
    activation = config.get("activation", "relu")
    if kind in ("topk", "batchtopk") and activation != "relu":
        raise ArtifactError(
            f"{folder} selects after {activation!r} in place of ReLU, which no architecture of "
            "saelab expresses: it cannot be imported"
        )


def _selection(
    config: dict[str, Any], kind: str, weights: dict[str, Any], path: Path
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    if kind == "vanilla":
        return "relu", {}, ()
    if kind == "topk":
        return "topk", {"k": int(config["top_k"])}, ()
    if kind == "batchtopk":
        return batch_top_k(int(config["top_k"]), None, len(weights["b_enc"]))
    log_threshold: Tensor = take(weights, path, LOG_THRESHOLD)[LOG_THRESHOLD]
    b_in = torch.zeros(len(weights["b_dec"]))
    return "jumprelu", {"threshold": log_threshold.exp(), "b_in": b_in}, ()


FORMAT = Format("BatchTopK repository (Bussmann)", matches, read)
