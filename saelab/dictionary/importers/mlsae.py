"""MLSAE (Lawson): one TopK dictionary for the residual stream after every layer.

Each row is brought to mean 0 and standard deviation 1 and back after; `pre_encoder_bias` is
subtracted and added; the k largest pre-activations are kept, then ReLU. There is no encoder bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .files import load_config, load_weights, peek_config, renamed
from .foreign import Foreign, Format, Source, build

CONFIG, WEIGHTS = "config.json", "model.safetensors"
NAMES = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "pre_encoder_bias"}
PREFIX = "autoencoder."
"""Before every name where the file holds the language model too."""


def matches(path: Path) -> bool:
    """Whether a folder's config has their settings."""
    return {"k", "dead_steps_threshold"} <= peek_config(path / CONFIG).keys()


def read(source: Source) -> Iterator[Foreign]:
    """The one dictionary for all layers."""
    config, path = load_config(source.path / CONFIG), source.path / WEIGHTS
    weights = {name.removeprefix(PREFIX): held for name, held in load_weights(path).items()}
    if config.get("lens") or config.get("tuned_lens"):
        raise ArtifactError(
            f"{source.path} was trained through a lens that differs between layers: one dictionary "
            "for all layers cannot express it"
        )
    tensors = renamed(weights, path, NAMES)
    standardised = config.get("standardize", True)
    layers = config.get("layers") or []
    yield Foreign(
        dictionary=build(
            path,
            "topk",
            **tensors,
            b_enc=torch.zeros(tensors["W_enc"].shape[1]),
            k=int(config["k"]),
            input_normalisation="layer_norm" if standardised else "none",
        ),
        site=Site.of(f"blocks.{layers[0]}.hook_resid_post") if len(layers) == 1 else None,
        model=config.get("model_name"),
        conventions={
            "orientation": "linear layers transposed",
            "input bias": "pre_encoder_bias is subtracted, after the norm",
            "scale": "each row to mean 0 and standard deviation 1" if standardised else "none",
            "selection": f"{config['k']} largest, then ReLU",
            "hook point": "residual stream after a layer, before the final norm",
        },
        origin={"context_length": config.get("max_length")},
        notes=()
        if len(layers) == 1
        else (
            f"one dictionary for the layers {', '.join(map(str, layers)) or 'of the whole model'}: "
            "say at which it is to be judged with --reads blocks.<layer>.hook_resid_post",
        ),
        files=(source.path / CONFIG, path),
    )


FORMAT = Format("MLSAE (Lawson)", matches, read)
