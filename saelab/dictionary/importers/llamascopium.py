"""Llamascopium (OpenMOSS; before: Language-Model-SAEs): `config.json` and `sae_weights`.

What scales and gates mean is in `openmoss.py`. A cross-layer transcoder has one encoder for each
layer and decoders grouped by target; a crosscoder adds up the pre-activations of its hook points,
and with thresholds chooses for each of them by itself, so a latent becomes one for each.
Releases up to Llama-Scope-R1-Distill call the same tensors encoder and decoder, transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .cross_layer import across_layers, layer_tensors, one_latent_for_each
from .files import (
    load_config,
    load_weights,
    peek_config,
    require_shapes,
    require_tensors,
    take,
)
from .foreign import Foreign, Format, Source, names_of
from .openmoss import conventions, scaled_dictionary

CONFIG = "config.json"
WEIGHTS = tuple(
    f"{stem}.{suffix}"
    for stem in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for suffix in ("safetensors", "pt", "dcp")
)
"""Files that may hold the weights; the first of them does."""
NORM = "dataset_average_activation_norm."
REFUSED_TYPES = {
    "lorsa": "its latents are attention heads, which read a whole sequence and not one row",
    "molt": "its latents are low-rank transforms of the row, not directions with an activation",
}
WHOLE_BATCH = (
    "it chooses the largest of a whole batch and saves no threshold, so a row's codes depend on "
    "the others: convert it to jumprelu in Llamascopium first (topk_to_jumprelu_conversion)"
)
MODELS = {
    r"Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    r"Llama-Scope-2-(Qwen3-[\d.]+B)": r"Qwen/\1",
}
"""Which model a repository's name means; the files do not say it."""


def matches(path: Path) -> bool:
    """Whether a folder's `config.json` is one of Llamascopium's."""
    settings = peek_config(path / CONFIG)
    hooks = {"hook_point_in", "hook_points", "hook_points_in"}
    return {"d_model", "expansion_factor"} <= settings.keys() and bool(hooks & settings.keys())


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a folder."""
    folder, config = source.path, load_config(source.path / CONFIG)
    kind = str(config.get("sae_type", "sae"))
    if kind not in (*LAYOUTS, "clt"):
        reason = REFUSED_TYPES.get(kind, "of which saelab knows nothing")
        raise ArtifactError(f"{folder} is a {kind}: {reason}; it cannot be imported")
    reads, writes = hook_points(config, folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None or path.suffix == ".dcp":
        raise ArtifactError(
            f"{folder} holds {'none of ' + ', '.join(WEIGHTS) if path is None else path.name}: "
            "save it with save_pretrained in Llamascopium, as safetensors"
        )
    act_fn = _expressible_gate(config, folder, kind, len(reads))
    weights = load_weights(path)
    weights = weights.get("sae", weights)
    norms = {name: weights[key] for name in (*reads, *writes) if (key := NORM + name) in weights}
    notes = []
    if config.get("norm_activation") == "inference" and act_fn == "jumprelu":
        notes.append(
            "Llamascopium folded its scale in before it was saved, which leaves thresholds in the "
            "old scale: if its L0 is not what was reported, import the file it was folded from"
        )
    config["act_fn"] = act_fn
    if kind == "clt":
        dictionary = _clt(config, weights, path, (reads, writes), norms)
    else:
        tensors = LAYOUTS[kind](config, weights, path, len(reads))
        dictionary = scaled_dictionary(config, path, tensors, (reads, writes), norms)
    yield Foreign(
        dictionary=dictionary,
        site=Site(reads, writes),
        model=_model(names_of(source)),
        conventions=conventions(config),
        notes=tuple(notes),
        files=(folder / CONFIG, path),
    )


def _widths(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """d_model and d_sae."""
    if missing := {"d_model", "expansion_factor"} - config.keys():
        raise ArtifactError(f"{path}: its settings lack {', '.join(sorted(missing))}")
    return int(config["d_model"]), int(config["d_model"] * config["expansion_factor"])


def hook_points(config: Mapping[str, Any], folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hook points read and written, in TransformerLens' names as the settings have them.

    Raises:
        ArtifactError: the settings name none.
    """
    both = config.get("hook_points")
    reads = both or config.get("hook_points_in") or [config.get("hook_point_in")]
    writes = both or config.get("hook_points_out") or [config.get("hook_point_out") or reads[0]]
    if len(reads) != len(writes) or not all(isinstance(name, str) for name in (*reads, *writes)):
        raise ArtifactError(
            f"{folder} names the hook points {reads} and {writes}: as many must be read as written"
        )
    return tuple(map(str, reads)), tuple(map(str, writes))


def _expressible_gate(
    config: Mapping[str, Any], folder: Path, kind: str, n_hook_points: int
) -> str:
    """The architecture that chooses latents as `act_fn` does.

    Raises:
        ArtifactError: none does.
    """
    act_fn = str(config.get("act_fn", "relu")).lower()
    reasons = {"batchtopk": WHOLE_BATCH, "batchlayertopk": WHOLE_BATCH}
    if kind == "clt" and n_hook_points > 1:
        reasons["topk"] = "it chooses the k largest of each layer by itself"
    if kind == "crosscoder":
        reasons["topk"] = "it chooses the k largest of each hook point by itself"
    gates = {name: name for name in ("relu", "jumprelu", "topk")}
    if kind == "clt":  # the k largest of a token's layers are those of the one dictionary
        gates["layertopk"] = "topk"
    if act_fn in reasons or act_fn not in gates:
        reason = reasons.get(act_fn, f"saelab knows {', '.join(gates)}")
        raise ArtifactError(f"{folder} is a {kind} with {act_fn}: {reason}; it cannot be imported")
    return gates[act_fn]


def autoencoder_tensors(
    config: Mapping[str, Any], weights: Mapping[str, Any], path: Path, _n_hook_points: int = 1
) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec, b_dec and perhaps threshold of an autoencoder, in training's scale.

    Raises:
        ArtifactError: a tensor is missing or of another shape than the settings promise.
    """
    d_model, d_sae = _widths(config, path)
    names = ["W_E", "b_E", "W_D", "b_D"]
    if "encoder.weight" in weights:
        names = ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]
    held = take(weights, path, *(names if config.get("use_decoder_bias", True) else names[:3]))
    tensors: dict[str, Tensor] = dict(
        zip(("W_enc", "b_enc", "W_dec", "b_dec"), held.values(), strict=False)
    )
    if names[0] == "encoder.weight":
        tensors |= {name: tensors[name].T for name in ("W_enc", "W_dec")}
    tensors.setdefault("b_dec", torch.zeros(d_model))
    shapes = {"W_enc": (d_model, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_model)}
    require_shapes(tensors, path, shapes | {"b_dec": (d_model,)})
    return tensors | _threshold(weights, path, (d_sae,))


def _clt(
    config: Any, weights: Any, path: Path, sites: tuple[tuple[str, ...], ...], norms: Any
) -> Dictionary:
    (d_model, d_sae), layers = _widths(config, path), range(len(sites[0]))
    n = len(layers)
    biases = [f"b_D.{t}" for t in layers] if config.get("use_decoder_bias", True) else []
    shapes: dict[str, tuple[int, ...]] = {"W_E": (n, d_model, d_sae), "b_E": (n, d_sae)}
    shapes |= {f"W_D.{target}": (target + 1, d_sae, d_model) for target in layers}
    shapes |= dict.fromkeys(biases, (d_model,))
    require_tensors(weights, path, *shapes)
    require_shapes(weights, path, shapes)
    threshold = _threshold(weights, path, (n, d_sae))
    held = take(weights, path, *biases)
    b_dec = torch.stack(list(held.values())) if biases else torch.zeros(n, d_model)

    def layer(index: int) -> Dictionary:
        parts = {"W_enc": weights["W_E"][index], "b_enc": weights["b_E"][index]}
        parts |= {f"W_D.{target}": weights[f"W_D.{target}"][index] for target in layers[index:]}
        parts = take(parts, path, *parts)
        decoder = torch.stack([parts.pop(f"W_D.{target}") for target in layers[index:]], dim=1)
        parts |= layer_tensors(index, decoder, b_dec)
        parts |= {name: values.view(n, -1)[index] for name, values in threshold.items()}
        at = sites[0][index : index + 1], sites[1][index:]
        return scaled_dictionary(config, path, parts, at, norms)

    return across_layers(path, (n, d_model, d_sae), layer)


def _crosscoder(config: Any, weights: Any, path: Path, n: int) -> dict[str, Tensor]:
    d_model, d_sae = _widths(config, path)
    held = take(weights, path, "W_E", "b_E", "W_D", "b_D")
    shapes = {"W_E": (n, d_model, d_sae), "b_E": (n, d_sae)}
    require_shapes(held, path, shapes | {"W_D": (n, d_sae, d_model), "b_D": (n, d_model)})
    tensors = {
        "W_enc": held["W_E"].reshape(n * d_model, d_sae),
        "b_enc": held["b_E"].sum(0),
        "W_dec": held["W_D"].transpose(0, 1).reshape(d_sae, n * d_model),
        "b_dec": held["b_D"].flatten(),
    }
    if config["act_fn"] != "jumprelu":
        return tensors
    # The threshold bounds h · ‖W_D‖ of each hook point, which differ.
    threshold = _threshold(weights, path, (d_sae,))
    tensors |= {name: values.repeat(n) for name, values in threshold.items()}
    return tensors | one_latent_for_each(path, tensors, held["W_D"])


LAYOUTS = {"sae": autoencoder_tensors, "crosscoder": _crosscoder}


def _threshold(weights: Any, path: Path, shape: tuple[int, ...]) -> dict[str, Tensor]:
    for name in ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold"):
        if name in weights:
            held = take(weights, path, name)
            require_shapes(held, path, {name: shape})
            return {"threshold": held[name].exp().flatten()}
    return {}


def _model(names: str) -> str | None:
    for pattern, model in MODELS.items():
        if match := re.search(pattern, names):
            return match.expand(model)
    return None


FORMAT = Format("Llamascopium and Llama-Scope-R1-Distill (OpenMOSS)", matches, read)
