"""circuit-tracer's cross-layer transcoders (mntss): `W_enc_<i>` and `W_dec_<i>.safetensors`.

Latents of layer i read its input and write the outputs of layers i, i+1, …: decoders are grouped by
source, entry t of W_dec_<i> writes layer i + t. As one dictionary over all layers side by side, the
encoder is block diagonal and the decoder block triangular. W_skip [layers d d] multiplies from the
right (x W_skip), the other way round than in transcoder sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .circuit_tracer import CONFIG, POSITION_0, notes_without_relu
from .cross_layer import block_matrices, require_dense_size
from .files import load_config, load_weights, peek_shapes, take
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
    _, first = next(iter(peek_shapes(folder / "W_dec_0.safetensors").items()), ("", ()))
    if len(first) == 3:
        d_sae, _, d_model = first
        require_dense_size(folder, n_layers, d_model, d_sae)
    layers = [_layer(folder, layer, n_layers) for layer in range(n_layers)]
    tensors = _blocks(folder, layers)
    skip = folder / SKIP_FILE
    if skip.is_file():
        tensors["W_skip"] = torch.block_diag(*take(load_weights(skip), skip, "W_skip")["W_skip"]).T
    architecture = "jumprelu" if "threshold" in tensors else "relu"
    reads, writes = (
        tuple(f"blocks.{layer}.{config.get(key, default)}" for layer in range(n_layers))
        for key, default in (
            ("feature_input_hook", "hook_resid_mid"),
            ("feature_output_hook", "hook_mlp_out"),
        )
    )
    yield Foreign(
        dictionary=build_unshifted(folder, architecture, **tensors),
        site=Site(reads, writes),
        model=config.get("model_name"),
        conventions={
            "orientation": f"encoders transposed; {n_layers} layers side by side as block matrices",
            "layout": "decoders grouped by source, then by target; latent = layer · d_sae + index",
            "selection": "ReLU" if architecture == "relu" else "threshold, strictly greater",
            "hook point": f"{reads[0]} -> {writes[0]}, and so on; layer norms are not folded",
            "position 0": POSITION_0,
        },
        notes=notes_without_relu(architecture, tensors.get("threshold")),
        files=(*sorted(folder.glob("W_*_*.safetensors")), folder / CONFIG, skip),
    )


def _layer(folder: Path, layer: int, n_layers: int) -> dict[str, Tensor]:
    """W_enc [d_sae d], W_dec [d_sae targets d], biases and perhaps threshold of one source."""
    encoder, decoder = (folder / f"W_{part}_{layer}.safetensors" for part in ("enc", "dec"))
    wanted = [f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")]
    tensors = take(load_weights(encoder), encoder, *wanted, optional=(f"threshold_{layer}",))
    tensors |= take(load_weights(decoder), decoder, f"W_dec_{layer}")
    tensors = {name.removesuffix(f"_{layer}"): tensor for name, tensor in tensors.items()}
    expected = (tensors["W_enc"].shape[0], n_layers - layer, tensors["W_enc"].shape[1])
    if tuple(tensors["W_dec"].shape) != expected:
        raise ArtifactError(
            f"{decoder} has shape {tuple(tensors['W_dec'].shape)}; of {n_layers} layers it must be "
            f"{expected}: layers are missing, or files of two transcoders are mixed"
        )
    return tensors


def _blocks(folder: Path, layers: list[dict[str, Tensor]]) -> dict[str, Any]:
    shape = layers[0]["W_enc"].shape
    for source, tensors in enumerate(layers):
        if tensors["W_enc"].shape != shape or tensors.keys() != layers[0].keys():
            raise ArtifactError(
                f"{folder}: layer {source} has other shapes or tensors than layer 0: files of two "
                "transcoders are mixed; get them again"
            )
    vectors = [name for name in ("b_enc", "b_dec", "threshold") if name in layers[0]]
    joined = {name: torch.cat([tensors[name].flatten() for tensors in layers]) for name in vectors}
    decoders = {
        (source, source + later): tensors["W_dec"][:, later]
        for source, tensors in enumerate(layers)
        for later in range(tensors["W_dec"].shape[1])
    }
    matrices = block_matrices([tensors["W_enc"].T for tensors in layers], decoders)
    return {**joined, **matrices}


FORMAT = Format("circuit-tracer cross-layer transcoders (mntss)", matches, read)
