"""circuit-tracer's transcoder sets: `layer_<i>.safetensors` for every layer, and `config.yaml`.

f = act(x W_encᵀ + b_enc), ŷ = f W_dec + b_dec + x W_skipᵀ: nothing is subtracted from the input.
act is JumpReLU where the file holds thresholds, TopK where file or config hold k, else ReLU. Their
TopK and JumpReLU have no ReLU: codes can be negative, and are zero here. Hanna's sets for Qwen 3
have a second config, sometimes misspelt, and one of them only that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .files import load_config, load_weights, peek_config, peek_shapes, take
from .foreign import Foreign, Format, Source, build_unshifted

CONFIG = "config.yaml"
RUN_CONFIGS = ("wandb-config.yaml", "wanb-config.yaml")
LAYER = re.compile(r"layer_(\d+)\.safetensors")
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")
THRESHOLD = "activation_function.threshold"
K_OF = {"crv-8b-instruct-transcoders": 128}
"""k that circuit-tracer knows by heart, by a repository's name."""
POSITION_0 = "circuit-tracer zeroes all codes at position 0 of its graphs; none are zeroed here"


def matches(path: Path) -> bool:
    """Whether a folder holds layers of a set, or a file is one."""
    files = [path] if path.is_file() else sorted(path.glob("layer_*.safetensors"))
    held = peek_shapes(files[0]).keys() if files and LAYER.fullmatch(files[0].name) else set()
    return held >= {*TENSORS} or peek_config(path / CONFIG).get("model_kind") == "transcoder_set"


def read(source: Source) -> Iterator[Foreign]:
    """The transcoder of each layer."""
    path = source.path
    folder = path.parent if path.is_file() else path
    config = load_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    layers = _layers(path, config)
    for layer, file in layers.items():
        yield _read_one(source, config, layer, file, f"layer_{layer}" if len(layers) > 1 else "")


def _layers(path: Path, config: dict[str, Any]) -> dict[int, Path]:
    """The file of each layer.

    Raises:
        ArtifactError: layers are missing, or lie in other repositories.
    """
    if path.is_file():
        named = LAYER.fullmatch(path.name)
        return {int(named[1]) if named else 0: path}
    listed = config.get("transcoders")
    if listed and any(str(each).startswith("hf://") for each in listed):
        raise ArtifactError(
            f"{path / CONFIG} only lists transcoders of other repositories ({listed[0]}, …): "
            "import those"
        )
    if listed:
        return {layer: path / str(each) for layer, each in enumerate(listed)}
    files = {int(name[1]): each for each in path.iterdir() if (name := LAYER.fullmatch(each.name))}
    missing = sorted({*range(max(files, default=0) + 1)} - files.keys())
    if missing:
        raise ArtifactError(
            f"{path} lacks layer_{missing[0]}.safetensors: a set has every layer from 0 on; get "
            "the whole set again, or give the file of one layer"
        )
    return dict(sorted(files.items()))


def _read_one(source: Source, config: dict[str, Any], layer: int, path: Path, name: str) -> Foreign:
    weights = load_weights(path)
    tensors = take(weights, path, *TENSORS, optional=("W_skip", THRESHOLD))
    encoder, threshold = tensors.pop("W_enc"), tensors.pop(THRESHOLD, None)
    known = next((k for part, k in K_OF.items() if part in source.name), None)
    k = weights.get("k", config.get("k", known))
    if config.get("activation", "relu" if k is None else "topk") == "topk" and threshold is None:
        if k is None:
            raise ArtifactError(f"{path} and {CONFIG} name TopK without k: get them again")
        architecture, extra = "topk", {"k": int(k)}
    elif threshold is not None:
        architecture, extra = "jumprelu", {"threshold": threshold.flatten()}
    else:
        architecture, extra = "relu", {}
    reads = config.get("feature_input_hook", "mlp.hook_in")
    writes = config.get("feature_output_hook", "hook_mlp_out")
    run_configs = [path.parent / each for each in RUN_CONFIGS]
    size = re.search(r"qwen3-(\d+(?:\.\d+)?)b", source.name.lower())
    model = (
        f"Qwen/Qwen3-{size[1]}B" if size and any(each.is_file() for each in run_configs) else None
    )
    return Foreign(
        dictionary=build_unshifted(path, architecture, W_enc=encoder.T, **tensors, **extra),
        name=name,
        site=Site((f"blocks.{layer}.{reads}",), (f"blocks.{layer}.{writes}",)),
        model=config.get("model_name", model),
        conventions={
            "orientation": "W_enc transposed; W_dec and W_skip as they are",
            "selection": {"topk": f"{k} largest", "jumprelu": "threshold, strictly greater"}.get(
                architecture, "ReLU"
            ),
            "hook point": f"{reads} -> {writes}, of a model whose layer norms are not folded",
            "position 0": POSITION_0,
        },
        notes=notes_without_relu(architecture, threshold),
        files=(path, path.parent / CONFIG, *run_configs),
    )


def notes_without_relu(architecture: str, threshold: Tensor | None) -> tuple[str, ...]:
    """Where codes differ from those of a library that keeps negative ones."""
    if architecture == "topk":
        return (
            "circuit-tracer's TopK has no ReLU: in a row where fewer than k pre-activations are "
            "positive, its codes of the others are negative and these are zero",
        )
    negative = 0 if threshold is None else int((threshold < 0).sum())
    if not negative:
        return ()
    return (
        f"{negative:,} thresholds are negative, and circuit-tracer's JumpReLU has no ReLU: its "
        "codes between threshold and zero are negative, these are zero",
    )


def reference(source: Source, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction of one layer by circuit-tracer itself."""
    from circuit_tracer.transcoder.activation_functions import (  # type: ignore[import-not-found]
        TopK,
    )
    from circuit_tracer.transcoder.single_layer_transcoder import (  # type: ignore[import-not-found]
        load_relu_transcoder,
    )

    (foreign,) = read(source)
    transcoder = load_relu_transcoder(
        str(foreign.files[0]), 0, torch.device("cpu"), lazy_encoder=False, lazy_decoder=False
    )
    if foreign.dictionary.architecture == "topk":
        transcoder.activation_function = TopK(foreign.dictionary.k)
    codes = transcoder.encode(x)
    return codes.detach(), transcoder.decode(codes, x).detach()


FORMAT = Format("circuit-tracer transcoder sets (and Hanna's)", matches, read, reference)
