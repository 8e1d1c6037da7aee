"""circuit-tracer's cross-layer transcoders (mntss): `W_enc_<i>` and `W_dec_<i>.safetensors`.

Latents of layer i read its input and write the outputs of layers i, i+1, …: decoders are grouped by
source, entry t of W_dec_<i> writes layer i + t. As one dictionary over all layers side by side, the
encoder is block diagonal and the decoder block triangular. W_skip [layers d d] multiplies from the
right (x W_skip), the other way round than in transcoder sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .circuit_tracer import CONFIG, POSITION_0, notes_without_relu
from .cross_layer import across_layers, layer_tensors
from .files import load_config, load_weights, require_tensors, take
from .foreign import Foreign, Format, Source, build_unshifted

SKIP_FILE = "W_skip.safetensors"


def matches(path: Path) -> bool:
    """Whether a folder holds the encoders of a cross-layer transcoder."""
    return path.is_dir() and any(path.glob("W_enc_*.safetensors"))


def read(source: Source) -> Iterator[Foreign]:
    """The one dictionary over all layers."""
    folder = source.path
    config = load_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    names = [path.stem.rpartition("_") for path in folder.glob("W_*_*.safetensors")]
    n_layers = 1 + max(int(index) for _, _, index in names if index.isdecimal())
    d_sae, d_model, has_threshold = _shape(folder, n_layers)
    encoders = [folder / f"W_enc_{layer}.safetensors" for layer in range(n_layers)]
    biases = [
        take(load_weights(path), path, f"b_dec_{layer}") for layer, path in enumerate(encoders)
    ]
    b_dec = torch.stack([bias.flatten() for held in biases for bias in held.values()])
    skip = folder / SKIP_FILE
    skips = take(load_weights(skip), skip, "W_skip")["W_skip"].mT if skip.is_file() else None

    def layer(index: int) -> Dictionary:
        tensors = _layer(folder, index)
        own_skip = None if skips is None else skips[index]
        tensors |= layer_tensors(index, tensors["W_dec"], b_dec, own_skip)
        tensors["W_enc"] = tensors["W_enc"].T
        return build_unshifted(folder, architecture, **tensors)

    architecture = "jumprelu" if has_threshold else "relu"
    reads, writes = (
        tuple(f"blocks.{layer}.{config.get(key, default)}" for layer in range(n_layers))
        for key, default in (
            ("feature_input_hook", "hook_resid_mid"),
            ("feature_output_hook", "hook_mlp_out"),
        )
    )
    thresholds = [
        take(load_weights(path), path, f"threshold_{layer}")[f"threshold_{layer}"]
        for layer, path in enumerate(encoders)
        if has_threshold
    ]
    yield Foreign(
        dictionary=across_layers(folder, (n_layers, d_model, d_sae), layer),
        site=Site(reads, writes),
        model=config.get("model_name"),
        conventions={
            "orientation": f"encoders transposed; {n_layers} layers side by side as block matrices",
            "layout": "decoders grouped by source, then by target; latent = layer · d_sae + index",
            "selection": "ReLU" if architecture == "relu" else "threshold, strictly greater",
            "hook point": f"{reads[0]} -> {writes[0]}, and so on; layer norms are not folded",
            "position 0": POSITION_0,
        },
        notes=notes_without_relu(architecture, torch.cat(thresholds) if thresholds else None),
        files=(*sorted(folder.glob("W_*_*.safetensors")), folder / CONFIG, skip),
    )


def _shape(folder: Path, n_layers: int) -> tuple[int, int, bool]:
    """Latents of each layer, width, and whether there are thresholds; tensors are not read.

    Raises:
        ArtifactError: the files of a layer are missing, damaged, or not of the same transcoder.
    """
    first: dict[str, tuple[int, ...]] = {}
    for layer in range(n_layers):
        encoder, decoder = (folder / f"W_{part}_{layer}.safetensors" for part in ("enc", "dec"))
        shapes: dict[str, tuple[int, ...]] = {}
        for path, names in ((encoder, ("W_enc", "b_enc", "b_dec")), (decoder, ("W_dec",))):
            held = load_weights(path)
            wanted = [f"{name}_{layer}" for name in names]
            require_tensors(held, path, *wanted)
            kept = [*wanted, *(name for name in (f"threshold_{layer}",) if name in held)]
            shapes |= {name.removesuffix(f"_{layer}"): tuple(held[name].shape) for name in kept}
        written, expected = shapes.pop("W_dec"), (n_layers - layer, *shapes["W_enc"][1:])
        if written != (*shapes["W_enc"][:1], *expected):
            raise ArtifactError(
                f"{decoder} has shape {written}; of {n_layers} layers it must be "
                f"{(*shapes['W_enc'][:1], *expected)}: layers are missing, or files of two "
                "transcoders are mixed"
            )
        first = first or shapes
        if shapes != first:
            raise ArtifactError(
                f"{folder}: layer {layer} has other shapes or tensors than layer 0: files of two "
                "transcoders are mixed; get them again"
            )
    d_sae, d_model = first["W_enc"]
    return d_sae, d_model, "threshold" in first


def _layer(folder: Path, layer: int) -> dict[str, Tensor]:
    """W_enc [d_sae d], W_dec [d_sae targets d], b_enc and perhaps threshold of one source."""
    encoder, decoder = (folder / f"W_{part}_{layer}.safetensors" for part in ("enc", "dec"))
    wanted = [f"{name}_{layer}" for name in ("W_enc", "b_enc")]
    tensors = take(load_weights(encoder), encoder, *wanted, optional=(f"threshold_{layer}",))
    tensors |= take(load_weights(decoder), decoder, f"W_dec_{layer}")
    return {name.removesuffix(f"_{layer}"): tensor for name, tensor in tensors.items()}


FORMAT = Format("circuit-tracer cross-layer transcoders (mntss)", matches, read)
